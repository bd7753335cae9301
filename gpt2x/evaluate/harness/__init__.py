"""Benchmarks of EleutherAI's lm-evaluation-harness (extra `[lm-eval]`); imports nothing, so that it may be missing."""
