"""Low-rank adapters (Hu et al., arXiv:2106.09685): trained beside frozen weights, merged into them to be used.

A module's weight W (in, out) gets two factors A (in, r) and B (r, out), and computes x (W + s A B).

- `shapes`: names, shapes and placements of the factors.
- `cells`: the factors as MindSpore cells beside the linears of a built model, and their initial values.
- `adapter`: `Adapter`, a trained adapter in memory, and whether it fits a model and its base.
- `open`: opens adapters: a run of `lora=`, one of its checkpoints, or a PEFT directory.
- `peft`: reads PEFT directories, with `peft_config` and `peft_tensors` for their two files; `peft_export` writes them.
- `mindformers`: reads the factors in MindFormers' checkpoints.
- `merge`: the weights W + s A B, computed box by box while they are read.

Only `cells` imports MindSpore. What a run trains is a `gpt2x.trainable.Adapters`.
"""
