"""The commands: one file each, named as it is typed.

- `cli`: which command a command line means. `hydra_entry` composes, `configuration` types and checks the result.
- `entry`: decides in this process, then runs here or in one worker per device (`worker`).
- `train`, `evaluate`, `predict`: `decide` reads everything and raises the mistakes; `run` computes.
- `prepare`, `plan`, `convert`, `checkpoint`, `harness`, `sync`: commands that run as one process.
- `arguments`: command lines that Hydra does not read.
"""
