"""Predictions of a loaded model: completions of prompts, decoded with a key/value cache, and classes of texts.

- `prompts`: reads prompts and fills templates. `output`: JSON lines, or text on the terminal.
- `predict_text`, `predict_classes`: what `predict.py` does with a language model, and with a classifier.
- `completion`: `Generator`: checks that prompts fit the window, and loops over tokens.
- `slots`: prompts enter and leave a batch while others continue. `decoder`, `fused`: the forward pass on the cache.
- `sampling`: the choice of the next token. `speculative`: a small model or the text drafts.
- `streaming`: text as its tokens arrive. `replicas`: prompts divided among the replicas of a layout.
- `class_scorer`: probabilities of the classes of a text.
"""

from gpt2x.generate.completion import Completion, Generator

__all__ = ["Completion", "Generator"]
