"""GPT-2 for one device: the maths, without layouts, optimizer or training.

- `gpt2.py`: the model. Shapes stand on the lines of `construct`; operators come from a backend of `gpt2x.ops`.
- `classifier.py`: the model with a classification head on the last token of each text.
- `losses/`: the losses of the tasks.
- `stats.py`: tensors, parameters and FLOPs, from the configuration only.
"""
