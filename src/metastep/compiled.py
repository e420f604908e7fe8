"""C++ sources as libraries: built once per machine with the compiler that is there."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

#: Of every source. No arithmetic is changed: infinities and NaNs are what they are.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")


def cache_directory() -> Path:
    """Where what is made once is kept: METASTEP_CACHE, or metastep under the user's cache directory."""
    root = os.environ.get("METASTEP_CACHE")
    if root:
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metastep"


def compiler() -> str | None:
    """The C++ compiler to use: CXX, or the first of the usual names that exists."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


@functools.cache
def library(source: Path, *flags: str) -> ctypes.CDLL | None:
    """A source as a library, built if need be; None where that is impossible.

    Args:
        source: a C++ file that includes nothing of its own folder.
        flags: of the compiler, besides the usual ones.
    """
    command = compiler()
    if command is None:
        return None
    flags = (*FLAGS, *flags)
    try:
        path = cache_directory() / f"{source.stem}-{fingerprint(command, source, flags)}.so"
        with contextlib.suppress(OSError):  # none there, or a damaged one
            return ctypes.CDLL(str(path))
        build(command, source, flags, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: there is no home directory
        return None


def fingerprint(command: str, source: Path, flags: tuple[str, ...]) -> str:
    """What the built library depends on: source, flags, compiler and the processor's instruction sets."""
    parts = [
        source.read_bytes(),
        " ".join(flags).encode(),
        command.encode(),
        str(os.path.getmtime(command)).encode(),
    ]
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        lines = processor.read_text(errors="replace").splitlines()
        parts.append(next((line for line in lines if line.startswith(("flags", "Features"))), "").encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def build(command: str, source: Path, flags: tuple[str, ...], path: Path) -> None:
    """Compile beside the target and move it there in one step, so that processes do not meet half a file.

    OpenMP is left unresolved in the library: torch has brought its own runtime into the process, and two of them would
    take the cores from each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=300)
        linked = Path(folder, path.name)
        compiled = str(Path(folder, "compiled.o"))
        arguments = [command, *flags, "-c", str(source), "-o", compiled]
        try:
            run([*arguments, "-fprefetch-loop-arrays"])  # GCC's own, worth 5 %
        except subprocess.CalledProcessError:
            run(arguments)
        run([command, "-shared", compiled, "-o", str(linked)])
        linked.replace(path)
