"""Interpreter, packages, driver and toolkit: what runs here, and what gpt2x was tested with."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from gpt2x.doctor.report import Check, CheckFailedError, NotHereError

TESTED = {"python": "3.11", "mindspore": "2.10.0", "numpy": "1.26"}  # prefixes, as pyproject.toml asks
PACKAGES = ("mindspore", "numpy", "hydra-core", "omegaconf", "tokenizers", "safetensors", "mlflow")
# Where Huawei's installers write their versions (hiascend.com, CANN software installation guide)
DRIVER = Path("/usr/local/Ascend/driver/version.info")
FIRMWARE = Path("/usr/local/Ascend/firmware/version.info")
TOOLKIT = "ascend-toolkit/latest"


def toolkit_file() -> Path:
    """Return the file with CANN's version: below ASCEND_HOME_PATH, or where the installer puts it."""
    home = os.environ.get("ASCEND_HOME_PATH") or f"/usr/local/Ascend/{TOOLKIT}"
    return Path(home) / "version.cfg"


def version_in(path: Path) -> str:
    """Return the first version number in a file.

    Raises:
        NotHereError: there is no such file.
        CheckFailedError: it has no version.
    """
    if not path.is_file():
        raise NotHereError(f"{path} is missing")
    match = re.search(r"\d+\.\d+[\w.]*", path.read_text(encoding="utf-8", errors="replace"))
    if match is None:
        raise CheckFailedError(f"{path} has no version number")
    return match[0]


def machine_facts() -> dict[str, str]:
    """Return what identifies this machine in a report; nothing about its user."""
    facts = {"platform": platform.platform(), "processor": platform.machine(), "cores": str(os.cpu_count())}
    facts["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "missing"
    for name, path in (("CANN", toolkit_file()), ("driver", DRIVER), ("firmware", FIRMWARE)):
        try:
            facts[name] = version_in(path)
        except (NotHereError, CheckFailedError) as reason:
            facts[name] = str(reason)
    return facts


def version_checks(is_cpu: bool) -> list[Check]:
    """Return the checks of versions; those of Huawei's software do not apply to a CPU."""

    def tested(name: str) -> str:
        version = machine_facts()[name]
        if not version.startswith(TESTED[name]):
            raise CheckFailedError(f"{version}; gpt2x is tested with {TESTED[name]}")
        return version

    def huawei(path: Path) -> str:
        if is_cpu:
            raise NotHereError("the device is the CPU")
        try:
            return version_in(path)
        except NotHereError as reason:
            raise CheckFailedError(str(reason)) from None

    checks = [
        Check("versions", name, lambda name=name: tested(name), f"install {name} {TESTED[name]}") for name in TESTED
    ]
    for name, path in (("CANN", toolkit_file()), ("driver", DRIVER), ("firmware", FIRMWARE)):
        advice = f"install the {name} that docs/ascend.md lists for MindSpore {TESTED['mindspore']}"
        checks.append(Check("versions", name, lambda path=path: huawei(path), advice))
    return checks
