"""Weights of trained models: opening what `load=` names, checking it, and writing Hugging Face directories.

Nothing here imports MindSpore, torch or transformers, and no values are read before they are used.

- `source`: `load_source` tells a run, a gpt2x checkpoint, a Hugging Face directory and MindFormers' files apart, and
  opens it.
- `base`: `WeightsSource`, what every opened directory has.
- `huggingface`: opens and writes Hugging Face GPT-2 directories.
- `huggingface_config`: config.json to `ModelConfig` and back; `huggingface_keys`: what is done with each of its keys.
- `huggingface_files`: which files of weights are read; `huggingface_names`: names of their tensors, ties, other heads.
- `torch_pickle`: reads `.bin` files without running what they say.
- `mindformers`: opens and writes MindFormers' checkpoints; `mindformers_files`, `mindformers_names` and
  `mindformers_config` say which files, parameters and keys are read.
- `mindspore_ckpt`, `protobuf`: MindSpore's `.ckpt` files; `mindspore_slices`: those of several ranks.
- `tokenizer_files`: copies a tokenizer between formats, with its special tokens.
- `fit`: do names, shapes and sizes fit a model?
- `added_rows`: rows for the tokens that `tokenizer.extend` adds.
- `directories`: JSON files read, output directories that must be empty.

The formats of `gpt2x convert --to` are one file each in `gpt2x/formats`.
"""

from gpt2x.convert.base import WeightsSource
from gpt2x.convert.fit import check_model_matches, check_weights
from gpt2x.convert.huggingface import HuggingFaceWeights, export_huggingface
from gpt2x.convert.source import CheckpointWeights, load_source

__all__ = [
    "CheckpointWeights",
    "HuggingFaceWeights",
    "WeightsSource",
    "check_model_matches",
    "check_weights",
    "export_huggingface",
    "load_source",
]
