"""Everything that is known about a training run before a model is built.

`decide` asks in four stages, one file each. A stage reads what it needs, makes its own checks, and ends in a frozen
dataclass that the next stages read:

1. `source.py`: where the run starts from: weights, checkpoint to resume, adapter, tokenizer of the checkpoint.
2. `data.py`: the rows that it trains on, and how many steps that makes.
3. `model.py`: the model with its vocabulary, its labels and what the loaded weights decide.
4. `trainable.py`: which tensors are trained, and the frozen weights that adapters stand beside.

Every mistake of the user ends here as a `UserError`. Checks come in the order of their cost: configuration first, then
what the headers of files tell, then hashes of weights, then the preparation of a whole corpus.
"""

from gpt2x.train.decision.decide import Decision, decide

__all__ = ["Decision", "decide"]
