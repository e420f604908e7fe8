"""Tuning: the same number of trials for every method, from the same seeded search, kept where a restart finds them.

Finished trials are kept in an Optuna study: a journal file beside the records, or any storage that Optuna can open. A
few given rates to choose from (``metastep compare --lrs``) need no search and no Optuna: see :class:`GridSearch`.
"""

from __future__ import annotations

import math
import re
import secrets
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from metastep.files import decode_json, write_atomically
from metastep.lab.runtime.masking import masked, masked_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    import optuna
    from optuna.trial import FrozenTrial

    from metastep.lab.bench.method import Method

#: Trials after the first that are spread evenly over the space, before the search looks at what they gave. It is the
#: same for every budget, so that a search of 8 trials is the beginning of one of 32.
EVEN_TRIALS = 5

#: Trials are made on a seed that is not among those compared.
TUNING_SEED = 1_000_003

#: What a trial keeps besides its objective, in the attributes of Optuna's trial.
_OUTCOME = "metastep"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial of a search gave.

    Args:
        number: from 0; trial 0 has the defaults.
        values: of what is tuned, by name.
        objective: inner_valid loss at the end of the run, which the search lowers; infinite if it did not end well.
        selection: outer_valid loss at the end, which the winner is chosen by; infinite if it did not end well.
        status: "finished", "diverged" or "failed".
        seconds: of training.
        error: what went wrong, if it failed.
    """

    number: int
    values: Mapping[str, Any]
    objective: float
    selection: float
    status: str
    seconds: float
    error: str | None = None


def winner(trials: Sequence[Trial], budget: int) -> Trial:
    """Return the trial with the lowest outer_valid loss among the first ``budget``; the earlier one wins a tie.

    Where none ended well that is the first, which has the defaults.

    Args:
        trials: in their order, ``budget`` of them at least.
        budget: >= 1.

    Raises:
        ValueError: for fewer trials.
    """
    if not 1 <= budget <= len(trials):
        raise ValueError(f"budget must be in 1..{len(trials)}, the number of trials made, got {budget}.")
    return min(trials[:budget], key=lambda trial: (trial.selection, trial.number))


class GridSearch:
    """Trials at given values, one after the other.

    Args:
        values: of each trial.
        file: keeps the finished trials, as JSON.
    """

    def __init__(self, values: Sequence[Mapping[str, Any]], file: Path) -> None:
        self._values, self._file = values, file

    def trials(self) -> list[Trial]:
        """Return the finished trials in their order.

        Raises:
            ValueError: if the file is damaged; it names it.
        """
        if not self._file.is_file():
            return []
        kept = decode_json(self._file.read_bytes(), list[_KeptTrial], str(self._file))
        return [one.trial(number, self._values[number]) for number, one in enumerate(kept[: len(self._values)])]

    def propose(self) -> dict[str, Any]:
        """Return the values of the next trial."""
        return dict(self._values[len(self.trials())])

    def add(self, trial: Trial) -> None:
        """Keep a finished trial."""
        write_atomically(self._file, msgspec.json.encode([_KeptTrial.of(one) for one in (*self.trials(), trial)]))


class _KeptTrial(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A trial without its number and values; null stands for an infinite loss."""

    objective: float | None = None
    selection: float | None
    status: str
    seconds: float
    error: str | None = None

    @classmethod
    def of(cls, trial: Trial) -> _KeptTrial:
        losses = {"objective": trial.objective, "selection": trial.selection}
        finite = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}
        return cls(**finite, status=trial.status, seconds=trial.seconds, error=trial.error)

    def trial(self, number: int, values: Mapping[str, Any]) -> Trial:
        return Trial(
            number=number,
            values=values,
            objective=not_well(self.objective),
            selection=not_well(self.selection),
            status=self.status,
            seconds=self.seconds,
            error=self.error,
        )


class Search:
    """The trials of one method on one task: proposes the next, and keeps what came out.

    What is proposed depends on the seed and on the trials that are finished, and on nothing else. A trial that was
    killed is therefore proposed once more with the same values, and nothing of it need be kept here.

    Trial 0 has the method's defaults, the next :data:`EVEN_TRIALS` are points of a scrambled Sobol sequence, and those
    after them are the tree-structured Parzen estimator's; or the Gaussian process's, if the method says so.

    Args:
        method: whose values are searched for.
        study: where finished trials are kept, see :func:`open_study`.
        seed: of the search; the same for every method.

    Source: arXiv 1907.10902 (Optuna); Bergstra et al. 2011 (the estimator).
    """

    def __init__(self, method: Method, study: optuna.Study, *, seed: int = 0) -> None:
        self._method, self._study, self._seed = method, study, seed

    def trials(self) -> list[Trial]:
        """Return the finished trials in their order."""
        return [self._read(number, kept) for number, kept in enumerate(self._kept())]

    def propose(self) -> dict[str, Any]:
        """Return the values of the next trial."""
        return self._values(self._next())

    def add(self, trial: Trial) -> None:
        """Keep a finished trial: the one that was proposed last.

        Raises:
            ValueError: if its number is not the next.
        """
        kept = self._kept()
        if trial.number != len(kept):
            raise ValueError(f"trial.number must be {len(kept)}, the next, got {trial.number}; add each trial once.")
        proposed = self._next()
        optuna = imported_optuna()
        self._study.add_trial(
            optuna.trial.create_trial(
                params=proposed.params,
                distributions=proposed.distributions,
                value=trial.objective,
                user_attrs={_OUTCOME: msgspec.json.encode(_KeptTrial.of(trial)).decode()},  # not every store has null
            )
        )

    # ---- what Optuna is asked

    def _kept(self) -> list[FrozenTrial]:
        state = imported_optuna().trial.TrialState.COMPLETE
        return list(self._study.get_trials(deepcopy=False, states=(state,)))

    def _next(self) -> Any:
        """Return the next trial of a study in memory that has the same past."""
        optuna, kept = imported_optuna(), self._kept()
        number = len(kept)
        with quiet():
            if number <= EVEN_TRIALS:
                even = optuna.create_study(sampler=optuna.samplers.QMCSampler(seed=self._seed, scramble=True))
                even.enqueue_trial(dict(self._method.defaults))
                trial: Any = even.ask()
                self._values(trial)
                if number > 0:
                    even.tell(trial, 0.0)  # the sampler learns from a finished trial what there is to sample
                for _ in range(number):
                    trial = even.ask()
                    self._values(trial)
                return trial
            kind = optuna.samplers.GPSampler if self._method.search == "gp" else optuna.samplers.TPESampler
            sampler = kind(seed=self._seed + number, n_startup_trials=0)
            past = optuna.create_study(sampler=sampler)
            past.add_trials(kept)
            trial = past.ask()
            self._values(trial)
            return trial

    def _values(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        return {name: space.suggest(trial, name) for name, space in self._method.space.items()}

    def _read(self, number: int, kept: FrozenTrial) -> Trial:
        text = re.sub(r"(?<=: )Infinity(?=[,}])", "null", kept.user_attrs[_OUTCOME])  # as older versions wrote it
        outcome = decode_json(text, _KeptTrial, f"trial {number + 1} of study {self._study.study_name}")
        values = self._values(imported_optuna().trial.FixedTrial(kept.params))
        return replace(outcome.trial(number, values), objective=not_well(kept.value))


def not_well(value: float | None) -> float:
    """Return a loss, or infinity where there is none that is finite: the worst that a trial can give."""
    return value if value is not None and math.isfinite(value) else math.inf


def imported_optuna() -> ModuleType:
    """Return Optuna, which is imported when something is searched for.

    Raises:
        ImportError: if it is not installed; it says which extra brings it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError('Optuna is needed to tune methods; pip install "metastep[bench]"') from error
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells of studies and of infinite losses, and calls the even sampler experimental: no news to anyone."""
    optuna = imported_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", message="Clip non-finite values")
            yield
    finally:
        optuna.logging.set_verbosity(level)


# ---- where trials are kept


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
    with quiet(), storage_errors(storage):
        where = _journal(journal) if storage is None else _opened(storage)
        study: optuna.Study = imported.create_study(study_name=name, storage=where, load_if_exists=True)
        return study


@contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
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
    with storage_errors(storage):
        imported_optuna().delete_study(study_name=name, storage=_opened(storage))


def _unreachable(storage: str, error: Exception) -> StorageUnreachable:
    if (driver := _missing_driver(error)) is not None:
        package = {"psycopg": "psycopg[binary]"}.get(driver, driver)
        return StorageUnreachable(
            f"storage must be an Optuna storage that can be reached, got {masked(storage)}, whose driver "
            f"{driver} is not installed; run pip install '{package}', or leave storage out."
        )
    reason = masked_message(storage, (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
    return StorageUnreachable(
        f"storage must be an Optuna storage that can be reached, got {masked(storage)} ({reason}); "
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
