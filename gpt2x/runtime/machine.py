"""What identifies this machine: its processor, and Huawei's software and NPUs if there are any (imports no mindspore).

Huawei's installers write the versions into files (CANN software installation guide, "Querying the Software Package
Version": hiascend.com/document/detail/en/canncommercial/850/softwareinst/instg/instg_0064.html).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path("/")
# A package's release is `package_version` (driver, firmware), `version_dir` (parts of CANN) or `version`; beside them,
# `Version` may count builds, such as 7.7.0.1.231 of a firmware.
FIELDS = ("package_version", "version_dir", "version", "Version")
NPU_SMI_S = 10.0  # how long npu-smi may take


def processor() -> str:
    """Return the processor's name, or its architecture if Linux does not tell the name (aarch64)."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def version_files(root: Path = ROOT) -> dict[str, list[Path]]:
    """Return where the versions of CANN, driver and firmware stand; the first file that exists counts."""
    ascend = root / "usr/local/Ascend"
    home = os.environ.get("ASCEND_HOME_PATH")
    homes = [Path(home)] if home else [ascend / "cann", ascend / "ascend-toolkit/latest"]  # since CANN 8.5; before
    names = (f"{platform.machine()}-linux/ascend_toolkit_install.info", "compiler/version.info", "opp/version.info")
    return {
        "cann": [folder / name for folder in homes for name in names],
        "driver": [ascend / "driver/version.info"],
        "firmware": [ascend / "firmware/version.info"],
    }


def version_in(path: Path) -> str | None:
    """Return the release that a file of `key=value` lines states, or None."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    for field in FIELDS:
        match = re.search(r"\d+\.\d+[\w.]*", values.get(field, ""))
        if match:
            return match[0]
    return None


def ascend_versions(root: Path = ROOT) -> dict[str, str]:
    """Return the versions of CANN, driver and firmware by name; those that are not installed are left out."""
    versions = {}
    for name, paths in version_files(root).items():
        readable = [version for version in map(version_in, paths) if version]
        if readable:
            versions[name] = readable[0]
    return versions


def npus() -> str | None:
    """Return the NPUs that this process sees, such as "8 x 910B3", or None if npu-smi shows none."""
    try:
        done = subprocess.run(["npu-smi", "info", "-m"], capture_output=True, text=True, timeout=NPU_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    counts = Counter(re.findall(r"Ascend\s*(\w+)\s*$", done.stdout, re.MULTILINE))  # others are controllers: "Mcu"
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or None
