"""One process at a time in a folder."""

import os
from pathlib import Path
from types import ModuleType
from typing import Self, TextIO

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


class FolderInUse(OSError):
    """Another process works in the folder."""


class FolderLock:
    """Within ``with``, the folder belongs to this process; the kernel lets go of it however the process ends.

    Advisory, by ``flock`` on the file ``.lock``; where the system or the file system has none, nothing is locked.

    Args:
        folder: made if needed.

    Raises:
        FolderInUse: on entering, if another holder is alive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return self
        file = (self._folder / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise FolderInUse(f"{self._folder} is in use by process {holder}; wait for it, or stop it first.") from None
        except OSError:  # this file system has no locks
            file.close()
            return self
        self._file = file
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
