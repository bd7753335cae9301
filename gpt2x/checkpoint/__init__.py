"""Layout-free checkpoints: logical tensors in safetensors files and a manifest that is written last (floor 2)."""

from gpt2x.checkpoint.files import require_writable
from gpt2x.checkpoint.store import Checkpoint, list_checkpoints, open_checkpoint, prune
from gpt2x.checkpoint.write import Sliced, save

__all__ = ["Checkpoint", "Sliced", "list_checkpoints", "open_checkpoint", "prune", "require_writable", "save"]
