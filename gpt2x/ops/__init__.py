"""The operators whose implementation depends on the hardware.

A `Backend` provides them all. There are three, one file each, and every file ends with its `Backend`:

- `composed`: MindSpore's operators written out. Any device, any precision; the CPU in fp16.
- `native`: gpt2x's C++ kernels (`gpt2x.native`). The CPU in fp32 and bf16; in fp16 only the optimizer
  update.
- `ascend`: MindSpore's fused operators for Ascend, and `composed` for the rest.

`backend_of(hardware)` makes the one that `HardwareConfig.backend` names. A net makes it once and passes it down to its
cells; what comes after the net (optimizer, decoder, scorer) takes `net.backend`. Nothing global is involved, so nets
with different hardware options live in one process. A new device is one more file. docs/design/ops.md has the
measurements that decided them.
"""

from __future__ import annotations

from gpt2x.config import HardwareConfig
from gpt2x.extensions import Extensions
from gpt2x.ops._attention import hidden_keys
from gpt2x.ops._dropout import Dropout
from gpt2x.ops.base import DTYPES, Backend

__all__ = ["DTYPES", "Backend", "Dropout", "backend_of", "hidden_keys"]

BACKENDS = Extensions("gpt2x.ops", "create", "backend of hardware.device_target")


def backend_of(hardware: HardwareConfig) -> Backend:
    """Return a new backend for the device, precision and kernels of `hardware`.

    Raises:
        UserError: the compiled kernels belong to a different version of gpt2x.
    """
    return BACKENDS.load(hardware.backend)(hardware)
