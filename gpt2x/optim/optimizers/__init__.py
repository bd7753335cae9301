"""Optimizers: one file each, named as its value of `optimizer.kind`.

A file NAME.py defines `STATES`, the names of its fp32 states as a literal tuple, and `OPTIMIZER`, a subclass of
`gpt2x.optim.base.Optimizer`. It may define a dataclass `Settings` for keys under `optimizer.settings`. An option in
conf/optimizer with `kind: NAME` makes it selectable by name.
"""
