"""The kinds of trained tokenizers by name."""

from gpt2x.extensions import Extensions

TRAINERS = Extensions("gpt2x.data.tokenizers", "TRAIN", "tokenizer.kind")
