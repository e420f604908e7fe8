"""What every schedule of the registry keeps to. A new one is tested here by its line in the registry alone."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import metastep as ms
from metastep.schedules.registry import REGISTRY, table

STEPS = 12
#: Those that no run can name, and so cannot be made by ``for_run``.
MAKERS: dict[str, Callable[[], ms.Schedule]] = {
    "FixedOutput": lambda: ms.FixedOutput(0.3),
    "Phased": lambda: ms.Phased([ms.MLRSNet(hidden_size=3), ms.MLRSNet(hidden_size=3)], total_steps=STEPS),
}
every_schedule = pytest.mark.parametrize("name", REGISTRY)


def made(name: str) -> ms.Schedule:
    torch.manual_seed(0)
    return REGISTRY[name].for_run(STEPS) if REGISTRY[name].name else MAKERS[name]()


def rates(schedule: ms.Schedule, state: object, steps: range) -> tuple[list[float], object]:
    found = []
    for step in steps:
        rate, state = schedule.query(2.0 - step / STEPS, state)
        found.append(rate)
    return found, state


@every_schedule
def test_it_is_public_and_documented(name: str) -> None:
    assert getattr(ms, name) is REGISTRY[name]
    assert name in ms.__all__
    assert f"| `{name}` |" in table()
    if REGISTRY[name].name:
        assert REGISTRY[name].summary


@every_schedule
def test_it_comes_back_from_a_file_and_its_configuration_is_json(name: str, tmp_path: Path) -> None:
    schedule = made(name)
    assert json.loads(json.dumps(schedule.config())) == schedule.config()
    ms.save_schedule(schedule, tmp_path / "it")
    loaded = ms.load_schedule(tmp_path / "it")
    assert type(loaded) is type(schedule)
    assert loaded.config() == schedule.config()
    first, again = (rates(one, one.init_state(), range(STEPS)) for one in (schedule, loaded))
    assert first[0] == again[0]


@every_schedule
def test_equal_schedules_are_equal_files(name: str, tmp_path: Path) -> None:
    for file in ("one", "two"):
        ms.save_schedule(made(name), tmp_path / file, learned_on=["digits/mlp"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@every_schedule
def test_a_query_changes_nothing_and_is_the_forward_pass(name: str) -> None:
    schedule = made(name)
    before = copy.deepcopy(schedule.__dict__)
    state = schedule.init_state()
    kept = copy.deepcopy(state)
    first = rates(schedule, state, range(STEPS))[0]
    assert rates(schedule, state, range(STEPS))[0] == first
    assert str(state) == str(kept)
    assert schedule.config() == made(name).config()
    assert before.keys() == schedule.__dict__.keys()
    with torch.no_grad():
        assert float(schedule(2.0, state)[0]) == pytest.approx(first[0], rel=1e-6)


@every_schedule
def test_rates_are_finite_and_positive_and_go_on_beyond_the_horizon(name: str) -> None:
    schedule = made(name)
    found, state = rates(schedule, schedule.init_state(), range(STEPS))
    beyond, _ = rates(schedule, state, range(STEPS, STEPS + 3))
    assert all(0 < rate < float("inf") for rate in (*found, *beyond))


@every_schedule
def test_a_run_that_is_resumed_in_its_middle_is_the_unbroken_one(name: str) -> None:
    def start() -> tuple[torch.nn.Linear, ms.LearnedLR]:
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return model, ms.LearnedLR(optimizer, made(name), num_classes=2, total_steps=STEPS)

    def steps(model: torch.nn.Linear, lr: ms.LearnedLR, count: int) -> list[float]:
        found = []
        for _ in range(count):
            lr.optimizer.zero_grad()
            loss = (model(torch.ones(4, 3).double()) - 1).square().mean()
            loss.backward()
            lr.observe(loss)
            lr.optimizer.step()
            found += lr.get_last_lr()
        return found

    model, lr = start()
    expected = steps(model, lr, STEPS)
    model, lr = start()
    steps(model, lr, 5)
    saved = copy.deepcopy((model.state_dict(), lr.optimizer.state_dict(), lr.state_dict()))
    model, lr = start()
    for part, state in zip((model, lr.optimizer, lr), saved, strict=True):
        part.load_state_dict(state)
    assert steps(model, lr, STEPS - 5) == expected[5:]


@every_schedule
def test_loading_attaching_and_saving_draw_no_random_number(name: str, tmp_path: Path) -> None:
    schedule = made(name)
    before = torch.get_rng_state()
    ms.save_schedule(schedule, tmp_path / "it")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    ms.LearnedLR(optimizer, ms.load_schedule(tmp_path / "it"), num_classes=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
