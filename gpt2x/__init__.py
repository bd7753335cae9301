"""gpt2x: a Hydra-composed GPT-2 experiment framework on MindSpore."""

__version__ = "0.1.0"
