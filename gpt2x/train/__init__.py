"""Training: what is decided before, the graphs of an update, and the loop around them.

decision/            everything that is known before a model is built, in four stages; mistakes of the user end there
resume.py            which checkpoint a run continues from, and which keys may change
build.py             a process's part of the model with its values, its update, and its trainer
initial_values.py    the values that training begins with: loaded, an adapter's, or random
start_panel.py       what is printed before the first step
trainer.py           the loop
hooks.py             what follows each update: the terminal, validation, metrics.jsonl, checkpoints, samples
state.py             the position of a run in steps and data
rank_tensors.py      the tensors of a rank that checkpoints hold
update.py            gradients, clipping, guard and optimizer as cells
step.py              an update as graphs: of the whole model, in micro batches
pipeline_step.py     an update by pipeline stages
inspection.py        builds what looks inside of a run:
statistics/          norms, update ratios, activations and attention of layers
nonfinite.py         where a loss or a gradient that is not finite comes from
lr_find.py           a sweep of the learning rate
compile_cache.py     compiled graphs that are kept for the next start
samples.py           prompts of the samples that are drawn while training
"""
