"""Memory, communication and speed of a layout, predicted from nothing but the configuration.

`gpt2x plan …` (or `train.py … plan=true`) predicts one layout, and `gpt2x plan --search` compares all layouts of a
number of devices. Nothing is read or run, and mindspore is not imported. In the order in which a prediction is made:

values.py          count the values of the model and of what is trained that one rank holds: names and shapes only
activations.py     bytes that a training step keeps for its backward pass, and measured units of the CPU
memory.py          bytes of a training step on one device: weights, gradients, optimizer, activations, logits, buffers
communication.py   bytes that a rank sends in an update, over which links, and how long that takes
work.py            operations of a micro batch and its seconds: products at a calibrated rate, the rest by bandwidth
limits.py          the highest `parallel.zero_stage` that a run or a layout allows
roofline.py        seconds of an update; `plan_run`, `plan_layout`
inference.py       memory and speed of scoring and decoding: `plan_inference`
choose.py          what a configuration leaves to its layout and device: `settle`
search.py          every layout of a number of devices, ranked; single changes that save memory
report.py          tables and messages for people: `show_plan`

The start panel of a run shows the same estimate of memory. docs/planning.md derives the formulas, says where the
constants come from, and compares predictions with measurements.
"""
