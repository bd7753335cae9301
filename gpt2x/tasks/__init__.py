"""What a run learns, and what evaluate and predict do with such a model: one file per task, found by its name.

- `base`: `Task` and `Inference`, what a task states.
- `language_modeling`, `classification`, `instruction`: the tasks.
- `registry`: tasks by name, and which of them serves a loaded model.
"""
