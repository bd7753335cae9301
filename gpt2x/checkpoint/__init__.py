"""Checkpoints: directories of logical tensors that know nothing of devices or layouts (docs/checkpoints.md).

A logical tensor has Hugging Face's name and layout. Several ranks may write slices of it, and any layout reads boxes
of it back. A checkpoint exists completely or not at all: it is written under a hidden name and renamed at the end.

- `write`: the files. Each rank writes its slices, rank 0 the rest, and the manifest. `save` does so in one process.
- `writer`: `CheckpointWriter`, which writes the checkpoints of a run beside training, on all ranks.
- `manifest`: the manifest, read within limits and checked; whether slices cover a tensor.
- `store`: `Checkpoint`, opened and verified; those of a run listed, pruned, and set aside if they are damaged.
- `tensors`: tensors that stay in their file until a box of them is read; safetensors files, read and written.
- `reshard`: a checkpoint written again, whole or in the slices of a different layout.
- `files`: hashes, and whether the output directory can be written.
"""

from gpt2x.checkpoint.files import require_writable
from gpt2x.checkpoint.store import (
    Checkpoint,
    list_checkpoints,
    open_checkpoint,
    prune,
    recover,
    set_aside,
    step_directories,
)
from gpt2x.checkpoint.write import Content, Sliced, save
from gpt2x.checkpoint.writer import CheckpointWriter

__all__ = [
    "Checkpoint", "CheckpointWriter", "Content", "Sliced", "list_checkpoints", "open_checkpoint", "prune", "recover",
    "require_writable", "save", "set_aside", "step_directories",
]  # fmt: skip
