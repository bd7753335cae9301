"""Weights from and to other formats: Hugging Face GPT-2 directories, read without torch (floor 2)."""

from gpt2x.convert.huggingface import HuggingFaceSource, export_huggingface
from gpt2x.convert.source import GPT2XSource, Source, check_model_matches, check_weights, load_source

__all__ = [
    "GPT2XSource",
    "HuggingFaceSource",
    "Source",
    "check_model_matches",
    "check_weights",
    "export_huggingface",
    "load_source",
]
