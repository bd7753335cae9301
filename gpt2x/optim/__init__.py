"""From gradients to parameters: optimizers, learning-rate schedules, the fp16 loss scale.

An optimizer is one file in `optimizers/`, and its name is a value of `optimizer.kind`. It names its fp32 states, says
which scalars an update needs, and updates its parameters in place. Checkpoints and the planner read the names of the
states, so nothing else changes for a new optimizer. A schedule is one file in `schedules/`, and its name is a value of
`schedule.name`.

- `base.py`: what every optimizer has: states, groups of learning rates, which tensors weight decay leaves out.
- `optimizers/adamw.py`: AdamW, by one kernel per tensor.
- `registry.py`: finds an optimizer by its kind and reads its states' names; imports no mindspore.
- `layer_decay.py`: smaller rates for the layers near the embeddings.
- `schedule.py`: the learning rate of an update: warmup, then one of `schedules/`, down to a final ratio.
- `loss_scale.py`: the dynamic loss scale of fp16.
"""
