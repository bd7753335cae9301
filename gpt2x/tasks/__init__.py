"""The tasks: one file each, found by its name (see `gpt2x.tasks.base`)."""
