"""What `gpt2x doctor` checks on a machine, and how it reports it; `gpt2x.commands.doctor` runs the checks in order.

- `report.py`: findings, and the table, the JSON and the Markdown that they become.
- `versions.py`: interpreter, packages, driver and toolkit.
- `operators.py`: every operator of the backend against NumPy.
- `decoding.py`: the decoder's cache against the whole forward pass.
- `collectives.py`: every collective between real processes.
"""
