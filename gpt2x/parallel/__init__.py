"""Layouts, applied to the single-device model from outside (floor 2): docs/design/parallel.md."""
