"""Interpreter, packages, driver and toolkit: what runs here, and what fits together (`gpt2x.doctor.matrix`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gpt2x.doctor import matrix
from gpt2x.doctor.matrix import TESTED
from gpt2x.doctor.report import Check, CheckFailedError, NotHereError
from gpt2x.runtime.machine import ROOT, ascend_versions, npus, processor, version_files

PACKAGES = ("mindspore", "numpy", "hydra-core", "omegaconf", "tokenizers", "safetensors", "mlflow")
SETUP = "docs/ascend_setup.md"


def machine_facts(root: Path = ROOT) -> dict[str, str]:
    """Return what identifies this machine in a report; nothing about its user."""
    facts = {"platform": platform.platform(), "processor": processor(), "cores": str(os.cpu_count())}
    versions = ascend_versions(root)
    huawei = {name: versions.get(name, "not installed") for name in version_files(root)}
    return facts | packages() | huawei | {"npu": npus() or "none"}


def packages() -> dict[str, str]:
    """Return the versions of the interpreter and of packages; nothing is imported."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def version_checks(is_cpu: bool, root: Path = ROOT) -> list[Check]:
    """Return the checks of versions; those of Huawei's software do not apply to a CPU."""
    advice = f"install what {SETUP} lists for MindSpore {TESTED['mindspore']}"
    checks = [
        Check("versions", name, lambda name=name: tested(name), f"install {name} {TESTED[name]}") for name in TESTED
    ]
    checks.append(Check("versions", "architecture", architecture, f"install MindSpore as {SETUP} says"))
    for name, look in {"CANN": cann, "driver": driver, "firmware": firmware}.items():
        checks.append(Check("versions", name, on_ascend(look, is_cpu, root), advice))
    return checks


def tested(name: str) -> str:
    """Return the version of a package.

    Raises:
        CheckFailedError: gpt2x is tested with a different one.
    """
    version = packages()[name]
    if not version.startswith(TESTED[name]):
        raise CheckFailedError(f"{version}; gpt2x is tested with {TESTED[name]}")
    return version


def architecture() -> str:
    """Return the processor's architecture if MindSpore's libraries are for it.

    The wheel of MindSpore 2.10.0 on the Python package index is named cp311-none-any, but its libraries are x86-64.

    Raises:
        CheckFailedError: they are for a different one, or MindSpore is missing.
    """
    machine, spec = platform.machine(), find_spec("mindspore")  # does not import it
    folders = (spec and spec.submodule_search_locations) or []
    libraries = [path.name for folder in folders for path in Path(folder).glob("_c_expression*.so")]
    if not any(machine in name or "darwin" in name for name in libraries):
        raise CheckFailedError(f"this is {machine}, and MindSpore has {' '.join(libraries) or 'no library'}")
    return machine


def on_ascend(look: Callable[[dict[str, str]], str], is_cpu: bool, root: Path) -> Callable[[], str]:
    """Return a check that gets the versions of Huawei's software, and does not apply to a CPU."""

    def check() -> str:
        if is_cpu:
            raise NotHereError("the device is the CPU")
        return look(ascend_versions(root))

    return check


def require(name: str, versions: dict[str, str]) -> str:
    """Return the version of a part of Huawei's software.

    Raises:
        CheckFailedError: naming the files where it is looked for.
    """
    if name not in versions:
        raise CheckFailedError(f"no version in {', '.join(map(str, version_files()[name]))}")
    return versions[name]


def cann(versions: dict[str, str]) -> str:
    """Return the version of CANN.

    Raises:
        CheckFailedError: MindSpore does not accept it.
    """
    version = require("cann", versions)
    if matrix.toolkit(version) is None:
        accepted = " ".join(entry.cann for entry in matrix.TOOLKITS)
        raise CheckFailedError(f"{version}; MindSpore {TESTED['mindspore']} accepts {accepted}")
    return version


def driver(versions: dict[str, str]) -> str:
    """Return the version of the driver.

    Raises:
        CheckFailedError: it is not documented to work with this CANN.
    """
    version = require("driver", versions)
    entry = matrix.toolkit(versions.get("cann", ""))
    if entry and not any(matrix.begins(version, series) for series in entry.drivers):
        raise CheckFailedError(f"{version}; CANN {versions['cann']} works with {' '.join(entry.drivers)}")
    return version


def firmware(versions: dict[str, str]) -> str:
    """Return the version of the firmware.

    Raises:
        NotHereError: its file is missing, as in containers.
    """
    if "firmware" not in versions:
        raise NotHereError("its file is missing, as in containers; npu-smi info -t board -i 0 shows the version")
    return versions["firmware"]
