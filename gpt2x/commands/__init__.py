"""The commands: what each entry point composes, decides and runs."""
