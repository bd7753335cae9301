"""`train.py`: from a configuration to a finished run.

- `run.py`: the story of a run: decide, build, load, fit, finish.
- `decision/`: everything that is decided before a model is built, in four stages.
- `resume.py`: which checkpoint a run continues from.
- `initial_values.py`: the weights that a run starts from.
- `trainer.py`: the loop: batches, updates, validation, checkpoints, samples.
- `step.py`: one update of a global batch: its inputs, its result, and the frame of all layouts.
- `update.py`: the graphs of an update: gradients, accumulation, clipping, the guard, the optimizer.
- `pipeline_step.py`: the update of a pipeline stage in 1F1B order.
- `layout_builders.py`: which of the two a layout needs.
- `compile_cache.py`: compiled updates, kept for the next start.
- `start_panel.py`, `samples.py`: what a run prints first, and the texts that it samples.
"""
