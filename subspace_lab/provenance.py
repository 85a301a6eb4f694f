"""Where a run came from: versions, git state and device."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("subspace_lab", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def provenance() -> dict[str, Any]:
    """Describe the software and the machine: package versions, git commit, device, threads."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "git": git_state(Path(__file__).parent),
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def git_state(folder: Path) -> str | None:
    """Return the commit of `folder`, with `-dirty` for uncommitted changes; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
