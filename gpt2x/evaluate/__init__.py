"""Measurements of a model: perplexities under three protocols, scores of a classifier, and how certain they are.

- `measurement`: the contract of both kinds. `perplexity`: of a language model. `classifier`: of a classifier.
- `protocols`: reference, strided, word. `text`: the stream of tokens and its windows. `scoring`: losses of tokens.
- `classification`, `metrics`: predictions for a split; accuracy, F1 and Matthews' correlation.
- `bootstrap`: 95 % intervals and paired differences. `results`: the files that an evaluation writes.
- `comparison`: one table of all jobs of a sweep.
- `validation`: the validation loss of a language model while it trains.
- `harness/`: tasks of lm-evaluation-harness.
"""
