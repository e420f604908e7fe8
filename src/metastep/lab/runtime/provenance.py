"""Where a figure comes from: versions, machine, revision, command."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from metastep.core.distributed import rank_count
from metastep.lab.runtime.masking import masked
from metastep.version import __version__


def provenance(device: str) -> dict[str, Any]:
    """Return what a record keeps of its origin; ``device`` is the one that trained."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "metastep": __version__,
        },
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "processes": rank_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "command": " ".join(["metastep", *(shlex.quote(masked(part)) for part in sys.argv[1:])]),
        "git_revision": _git_revision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@cache
def _git_revision() -> str | None:
    """The revision of the checkout this package runs from; None if it runs from elsewhere.

    Asked once a process: what was imported does not change with the checkout.
    """
    checkout = Path(__file__).parents[4]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
