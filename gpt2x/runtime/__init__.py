"""The process: what it is in a run, how it starts others, how it ends, and all that it prints.

- `role`: launcher, worker, scheduler or the only process of a run; read once, then passed down.
- `launch`, `processes`, `scheduler`: start the processes of a layout, watch them, and end them together.
- `heartbeat`, `hangs`: what each worker does and for whom it waits; who keeps the others waiting.
- `interrupt`, `exits`: Ctrl-C and SIGTERM; exit status, and errors as the user sees them.
- `console`: results, notices, errors, the live bar.
- `device`: MindSpore's device, mode, threads and seed; the measured peak. `memory`: of the process and the machine.
- `hub`: the Hugging Face hub, its cache and downloads from it.
- `files`: directories that appear complete or not at all. `json_text`: JSON that users bring.
- `building`: one builder per directory of a cache.
- `jobs`: what is written down about a sweep (a Hydra multirun) and its jobs. `shares`: a job's share of the cores.
"""
