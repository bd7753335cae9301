"""The origin of a run: source code, machine and packages."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from gpt2x.config import HardwareConfig
from gpt2x.runtime.machine import ascend_versions, npus, processor

PACKAGES = ("mindspore", "numpy", "tokenizers", "safetensors", "hydra-core", "mlflow")


def git_state(repo: Path) -> dict[str, str | bool | None]:
    """Return the commit of a folder: `sha`, `dirty` (tracked files have changed) and `branch`.

    All are None outside of a repository or without git; `branch` is None on a detached head.
    """
    sha = _git(repo, "rev-parse", "HEAD")
    if not sha:
        return {"sha": None, "dirty": None, "branch": None}
    status = _git(repo, "status", "--porcelain", "--untracked-files=no")
    return {
        "sha": sha,
        "dirty": None if status is None else bool(status),
        "branch": _git(repo, "symbolic-ref", "--short", "HEAD") or None,
    }


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return installed versions by name, without importing anything; missing packages are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def run_tags(hardware: HardwareConfig, *, layout: str, data_hash: str | None = None) -> dict[str, str]:
    """Return the tags of a run: commit, layout, hardware, data, host and versions.

    Args:
        hardware: the device. Those of Ascend add their NPUs and the versions of CANN, driver and firmware.
        layout: name of the parallel option.
        data_hash: fingerprint of the prepared data.
    """
    from gpt2x import __version__

    package = Path(__file__).resolve().parents[1]
    # an installed copy may be inside the git repository of a different project
    is_tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    git = git_state(package) if is_tracked else {}
    tags = {
        "git.sha": git.get("sha"),
        "git.dirty": git.get("dirty"),
        "git.branch": git.get("branch"),
        "layout": layout,
        "hardware": hardware.name,
        "data.hash": data_hash,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "npu": None if hardware.is_cpu else npus(),
        "version.python": platform.python_version(),
        "version.gpt2x": __version__,
    }
    versions = package_versions() | ({} if hardware.is_cpu else ascend_versions())
    tags |= {f"version.{name}": version for name, version in versions.items()}
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in tags.items()
        if value is not None
    }


def _git(repo: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(repo), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
