"""Layouts, applied to the single-device model from outside (docs/design/parallel.md).

A rank has coordinates on three axes: data (replicas), tensor (slices of every layer) and stage (pipeline).

- `mesh.py`: this process among all, its communication groups, exchanges between hosts.
- `collectives.py`: all-reduce, all-gather and reduce-scatter inside graphs, with their gradients, on CPU and Ascend.
- `placement.py`: which part of each tensor a rank has, by arithmetic on names; used to load, save, reshard and plan.
- `tensor.py`: tensor and sequence parallelism: cells that replace those of the model.
- `pipeline.py`: the layers of a stage, its messages, the 1F1B order.
- `gradient_reduction.py`: gradients summed over replicas, over partial copies and over the two stages with the tied
  embedding; optimizer states sharded over replicas (ZeRO-1).
- `replica_batches.py`: evaluation batches divided among replicas.
- `agreement.py`: texts and counts that all ranks must agree on.
"""
