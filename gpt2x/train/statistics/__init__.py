"""Statistics of layers while a run trains (trainer.stats_every_steps), beside the graphs of training.

`tensors` has norms of logical tensors, `gradients` those of the gradients before clipping, `activations` a forward
pass that looks at the residual stream and at attention. `measure` puts them together as metrics.
"""
