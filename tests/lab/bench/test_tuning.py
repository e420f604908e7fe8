"""The search: equal for all methods, deterministic, restartable, judged where the docs say."""

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from metastep.lab.bench.method import Choice, LogUniform, Method, Uniform
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.tuning import (
    EVEN_TRIALS,
    Search,
    StorageUnreachable,
    Trial,
    check_storage,
    open_study,
    winner,
)

METHOD = Method(
    name="tried",
    summary="",
    source="",
    optimizer="sgd",
    space={"lr": LogUniform(1e-4, 1.0), "momentum": Uniform(0.0, 0.99), "nesterov": Choice((False, True))},
    defaults={"lr": 0.1, "momentum": 0.9, "nesterov": True},
)


def trial(number: int, values=None, objective: float = 1.0, selection: float = 1.0, **more) -> Trial:
    status = "finished" if math.isfinite(objective) else "diverged"
    return Trial(
        **{
            "number": number,
            "values": values or {},
            "objective": objective,
            "selection": selection,
            "status": status,
            "seconds": 0.5,
            **more,
        }
    )


def judged(number: int, values: dict) -> Trial:
    """A made-up run: best at lr 0.01, and one that diverges above 0.05."""
    loss = math.inf if values["lr"] > 0.05 else abs(math.log10(values["lr"]) + 2) + values["momentum"]
    return trial(number, values, loss, loss)


def made(search: Search, trials: int) -> list[Trial]:
    for number in range(len(search.trials()), trials):
        search.add(judged(number, search.propose()))
    return search.trials()


def search_in(folder: Path, *, method: Method = METHOD, storage: str | None = None, seed: int = 0) -> Search:
    return Search(method, open_study("s", storage=storage, journal=folder / "trials.journal"), seed=seed)


def test_the_first_trial_has_the_defaults_and_all_lie_in_the_space(tmp_path: Path) -> None:
    trials = made(search_in(tmp_path), 10)
    assert trials[0].values == METHOD.defaults
    assert all(one.values[name] in space for one in trials for name, space in METHOD.space.items())
    assert len({one.values["lr"] for one in trials}) == 10


def test_the_trials_after_it_are_spread_evenly(tmp_path: Path) -> None:
    trials = made(search_in(tmp_path), 1 + EVEN_TRIALS)[1:5]
    quarters = [int((math.log10(one.values["lr"]) + 4) // 1) for one in trials]  # of 1e-4 .. 1
    assert sorted(quarters) == [0, 1, 2, 3]


def test_methods_of_one_space_get_the_same_search_and_seeds_differ(tmp_path: Path) -> None:
    other = Method(**{**vars(METHOD), "name": "other", "defaults": {"lr": 0.01, "momentum": 0.5, "nesterov": False}})
    one, two = made(search_in(tmp_path / "a"), 6), made(search_in(tmp_path / "b", method=other), 6)
    assert [t.values for t in one[1:]] == [t.values for t in two[1:]]
    assert made(search_in(tmp_path / "c", seed=1), 3)[1].values != one[1].values


@pytest.mark.parametrize("where", ["journal", "sqlite"])
def test_a_search_that_is_opened_anew_for_every_trial_is_the_same_search(tmp_path: Path, where: str) -> None:
    storage = None if where == "journal" else f"sqlite:///{tmp_path / 'trials.db'}"
    whole = made(search_in(tmp_path / "whole"), 9)
    for number in range(9):
        search_in(tmp_path / "parts", storage=storage).propose()  # of a life that was killed before it was done
        made(search_in(tmp_path / "parts", storage=storage), number + 1)
    assert search_in(tmp_path / "parts", storage=storage).trials() == whole
    assert any(math.isinf(one.objective) for one in whole)
    assert len(whole) > 1 + EVEN_TRIALS  # the estimator has had its say


def test_a_gaussian_process_proposes_after_the_even_trials_and_learns_from_them(tmp_path: Path) -> None:
    gaussian, even = replace(METHOD, search="gp"), 1 + EVEN_TRIALS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = made(search_in(tmp_path / "gp", method=gaussian), even + 2)
    parzen = made(search_in(tmp_path / "tpe"), even + 1)
    assert [one.values for one in whole[:even]] == [one.values for one in parzen[:even]]
    assert whole[even].values != parzen[even].values
    assert made(search_in(tmp_path / "again", method=gaussian), even + 1) == whole[: even + 1]
    assert any(math.isinf(one.objective) for one in whole[:even])
    assert min(one.objective for one in whole[even:]) < min(one.objective for one in whole[:even])


def test_every_method_of_the_table_can_be_searched_from_its_defaults(tmp_path: Path) -> None:
    for name, method in METHODS.items():
        if method.space:
            search = search_in(tmp_path / name.replace("/", "-"), method=method)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert search.propose() == dict(method.defaults), name


def test_the_winner_is_chosen_by_outer_valid_among_the_trials_of_the_budget() -> None:
    trials = [trial(0, selection=3.0), trial(1, objective=0.1, selection=2.0), trial(2, objective=0.9, selection=1.0)]
    assert [winner(trials, budget).number for budget in (1, 2, 3)] == [0, 1, 2]
    assert winner([trial(0, selection=1.0), trial(1, selection=1.0)], 2).number == 0
    assert winner([trial(n, objective=math.inf, selection=math.inf) for n in range(3)], 3).number == 0
    with pytest.raises(ValueError, match=r"budget must be in 1\.\.3, the number of trials made, got 4"):
        winner(trials, 4)


def test_a_trial_is_kept_once(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    search.add(judged(0, search.propose()))
    with pytest.raises(ValueError, match=r"trial\.number must be 1, the next, got 0"):
        search.add(judged(0, search.propose()))


def test_a_failed_trial_keeps_its_error(tmp_path: Path) -> None:
    worst = trial(0, dict(METHOD.defaults), math.inf, math.inf, status="failed", error="ValueError: no")
    search_in(tmp_path).add(worst)
    assert search_in(tmp_path).trials() == [worst]


def test_half_a_line_and_a_lock_that_a_kill_left_are_mended(tmp_path: Path) -> None:
    before = made(search_in(tmp_path), 3)
    journal = tmp_path / "trials.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    (tmp_path / "trials.journal.lock").symlink_to(journal)
    assert search_in(tmp_path).trials() == before
    assert made(search_in(tmp_path), 4)[:3] == before


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://ann:secret@127.0.0.1:9/trials",
        "sqlite:////nowhere/at/all/trials.db",
        "nonsense",
        "mysql+pymysql://ann:secret@127.0.0.1:9/trials",
        "postgresql://127.0.0.1:9/trials?user=ann&password=secret",
        "postgresql://ann:top@secret@127.0.0.1:9/trials",
        "postgresql://ann:top/secret@127.0.0.1:9/trials",
    ],
)
def test_a_storage_that_cannot_be_reached_is_said_without_its_password(storage: str) -> None:
    with pytest.raises(StorageUnreachable, match="storage must be an Optuna storage that can be reached") as raised:
        check_storage(storage)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_driver_that_is_missing_is_named_with_what_brings_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    words = r"got postgresql\+psycopg://ann:\*\*\*@127.0.0.1:9/x, whose driver psycopg is not installed; run"
    with pytest.raises(StorageUnreachable, match=rf"{words} pip install 'psycopg\[binary\]', or leave storage out\.$"):
        check_storage("postgresql+psycopg://ann:secret@127.0.0.1:9/x")


def test_a_check_leaves_no_study_behind(tmp_path: Path) -> None:
    import optuna

    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    check_storage(storage)
    assert optuna.get_all_study_names(storage) == []
