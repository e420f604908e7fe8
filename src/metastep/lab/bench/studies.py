"""Where the trials of a search are kept: a journal file beside the records, or any storage that Optuna can open."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastep.lab.bench.tuning import imported_optuna, quiet
from metastep.lab.runtime.passwords import without_password, without_password_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna


class StorageUnreachable(OSError):
    """The storage of the trials cannot be opened, or was lost on the way."""


def open_study(name: str, *, storage: str | None, journal: Path) -> optuna.Study:
    """Open a study, or begin it.

    Args:
        name: of the study in the storage.
        storage: an Optuna storage URL, such as ``postgresql://...``; None: the journal file.
        journal: a file of this study alone; whoever opens it holds the lock of its folder.

    Raises:
        StorageUnreachable: if the storage cannot be opened.
        ImportError: if Optuna is not installed.
    """
    imported = imported_optuna()
    with quiet(), watched(storage):
        where = _journal(journal) if storage is None else _opened(storage)
        study: optuna.Study = imported.create_study(study_name=name, storage=where, load_if_exists=True)
        return study


@contextmanager
def watched(storage: str | None) -> Iterator[None]:
    """Within ``with``, whatever the driver of a database raises is one clear error; a journal file needs none.

    Raises:
        StorageUnreachable: for the error of a driver.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if storage is None:
            raise
        raise _unreachable(storage, error) from error


def check_storage(storage: str) -> None:
    """Write a study into a storage and take it away again, so that a wrong URL is known before anything is run.

    Raises:
        StorageUnreachable: if that cannot be done; it names the URL without its password.
    """
    name = f"metastep-check-{secrets.token_hex(8)}"
    open_study(name, storage=storage, journal=Path())
    with watched(storage):
        imported_optuna().delete_study(study_name=name, storage=_opened(storage))


def _unreachable(storage: str, error: Exception) -> StorageUnreachable:
    if (driver := _missing_driver(error)) is not None:
        package = {"psycopg": "psycopg[binary]"}.get(driver, driver)
        return StorageUnreachable(
            f"storage must be an Optuna storage that can be reached, got {without_password(storage)}, whose driver "
            f"{driver} is not installed; run pip install '{package}', or leave storage out."
        )
    reason = without_password_of(storage, (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
    return StorageUnreachable(
        f"storage must be an Optuna storage that can be reached, got {without_password(storage)} ({reason}); "
        "start it, install its driver, or leave storage out: trials are then kept in the folder of the experiment."
    )


def _missing_driver(error: BaseException | None) -> str | None:
    """The module that was missed, if that is what led to an error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        error = error.__cause__ or error.__context__
    return None


@lru_cache(maxsize=4)
def _opened(storage: str) -> Any:
    """Return the storage of a URL; a process opens it once, which takes a database longer than a short trial."""
    return imported_optuna().storages.get_storage(storage)


def _journal(path: Path) -> Any:
    """Return the storage of a journal file, mended after a kill: it may have left half a line, and the file locked."""
    optuna = imported_optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.is_file():
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            with path.open("r+b") as file:
                file.truncate(len(kept))
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.storages.JournalStorage(backend)
