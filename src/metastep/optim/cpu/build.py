"""Building the CPU kernels once per machine with the compiler that is there."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from metastep.core import rates

SOURCE = Path(__file__).with_name("kernels.cpp")
#: Of core/rates.py, which the kernels share.
CONSTANTS = (
    "NULL_DIRECTION",
    "SMALLEST_WEIGHT",
    "STEEPEST",
    "DEEPEST_CUT",
    "LEAST_CUT",
    "WARM_GROWTH",
    "RECOVERY",
    "NORM_MEMORY",
)
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"),
    *(f"-D{name}={getattr(rates, name)!r}" for name in CONSTANTS),
)


def cache_directory() -> Path:
    """Where built kernels are kept: METASTEP_CACHE, or metastep under the user's cache directory."""
    root = os.environ.get("METASTEP_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metastep"


def compiler() -> str | None:
    """The C++ compiler to use: CXX, or the first of the usual names that exists."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The kernels as a library, built if need be; None where that is impossible."""
    command = compiler()
    if command is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    path = cache_directory() / f"kernels-{fingerprint(command)}.so"
    try:
        if not path.exists():
            build(command, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def fingerprint(command: str) -> str:
    """What the built library depends on: source, flags, compiler and the processor's instruction sets."""
    parts = [
        SOURCE.read_bytes(),
        " ".join(FLAGS).encode(),
        command.encode(),
        str(os.path.getmtime(command)).encode(),
    ]
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        lines = processor.read_text(errors="replace").splitlines()
        parts.append(next((line for line in lines if line.startswith("flags")), "").encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def build(command: str, path: Path) -> None:
    """Compile beside the target and move it there in one step, so that processes do not meet half a file.

    OpenMP is left unresolved in the library: torch has brought its own runtime into the process, and two of them would
    take the cores from each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=300)
        linked = Path(folder, "kernels.so")
        compiled = str(Path(folder, "kernels.o"))
        arguments = [command, *FLAGS, "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", compiled]
        try:
            run([*arguments, "-fprefetch-loop-arrays"])  # GCC's own, worth 5 %
        except subprocess.CalledProcessError:
            run(arguments)
        run([command, "-shared", compiled, "-o", str(linked)])
        linked.replace(path)
