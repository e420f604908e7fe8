"""Tuning: the same number of trials for every method, from the same seeded search, kept where a restart finds them."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


class Search:
    """The trials of one method on one task: proposes the next, and keeps what came out.

    What is proposed depends on the seed and on the trials that are finished, and on nothing else. A trial that was
    killed is therefore proposed once more with the same values, and nothing of it need be kept here.

    Trial 0 has the method's defaults, the next :data:`EVEN_TRIALS` are points of a scrambled Sobol sequence, and those
    after them are the tree-structured Parzen estimator's.

    Args:
        method: whose values are searched for.
        study: where finished trials are kept, see :func:`metastep.lab.bench.studies.open_study`.
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
        outcome = {
            "selection": trial.selection,
            "status": trial.status,
            "seconds": trial.seconds,
            "error": trial.error,
        }
        optuna = imported_optuna()
        self._study.add_trial(
            optuna.trial.create_trial(
                params=proposed.params,
                distributions=proposed.distributions,
                value=trial.objective,
                user_attrs={_OUTCOME: json.dumps(outcome)},  # as text: not every store has an infinity
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
            sampler = optuna.samplers.TPESampler(seed=self._seed + number, n_startup_trials=0)
            past = optuna.create_study(sampler=sampler)
            past.add_trials(kept)
            trial = past.ask()
            self._values(trial)
            return trial

    def _values(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        return {name: space.suggest(trial, name) for name, space in self._method.space.items()}

    def _read(self, number: int, kept: FrozenTrial) -> Trial:
        outcome = json.loads(kept.user_attrs[_OUTCOME])
        assert kept.value is not None
        values = self._values(imported_optuna().trial.FixedTrial(kept.params))
        return Trial(number=number, values=values, objective=kept.value, **outcome)


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
    """Optuna tells of every study, and calls the quasi-random sampler experimental; neither is news to anyone."""
    optuna = imported_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
