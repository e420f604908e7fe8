"""torch.distributed.checkpoint: saved on two ranks, resumed on one and on four, as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.distributed.loops import Loop
from tests.distributed.ranks import on_ranks
from tests.distributed.test_hyper import MAKE, numbers
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import metastep as ms
import metastep.optim as ours

NAMES = ("all", "divide", "Hyper", "one rate")
BEFORE, AFTER = 3, 3

quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's own, while it saves


class Run:
    """A loop with a hypergradient optimizer, or with a learned schedule and who teaches it."""

    def __init__(self, kind: str, name: str) -> None:
        self.lr: ms.LearnedLR | None = None
        make = MAKE.get(name, lambda named: torch.optim.AdamW([p for _, p in named], lr=0.01))
        self.loop = Loop(kind, make)
        if name == "learned":
            torch.manual_seed(3)
            self.lr = ms.LearnedLR(self.loop.optimizer, ms.MLRSNet(8), num_classes=3)
            self.learner = ms.MetaLearner(self.lr, self.loop.loss, every=2, meta_lr=0.05)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            loss = self.loop.backward()
            if self.lr is None:
                self.loop.optimizer.step()
            else:
                self.lr.observe(loss)
                self.learner.step()

    def save(self, folder: str) -> None:
        model, optimizer = get_state_dict(self.loop.inner, self.loop.optimizer)
        dcp.save({"model": model, "optimizer": optimizer, **self._rates()}, checkpoint_id=folder, no_dist=alone())

    def load(self, folder: str) -> None:
        model, optimizer = get_state_dict(self.loop.inner, self.loop.optimizer)
        dcp.load({"model": model, "optimizer": optimizer, **self._rates()}, checkpoint_id=folder, no_dist=alone())
        set_state_dict(self.loop.inner, self.loop.optimizer, model_state_dict=model, optim_state_dict=optimizer)

    def _rates(self) -> dict[str, Any]:
        return {} if self.lr is None else {"lr": self.lr, "learner": self.learner}

    def result(self) -> dict[str, Any]:
        if self.lr is None:
            rates = numbers(self.loop.optimizer.rates())
        else:
            rates = {"rate": torch.tensor(self.lr.get_last_lr()), "steps": torch.tensor(self.lr.steps)}
            rates["weights"] = torch.cat([w.detach().reshape(-1) for w in self.lr.schedule.parameters()])
            rates["updates"] = torch.tensor(self.learner.meta_updates)
        return {"rates": rates, "weights": self.loop.weights()}


def alone() -> bool:
    """Whether there is no process group."""
    return not torch.distributed.is_initialized()


def saved(folder: str, kind: str) -> dict[str, Any]:
    """Save after some steps; then go on, undisturbed."""
    found = {}
    for name in (*NAMES, "learned"):
        run = Run(kind, name)
        run.train(BEFORE)
        run.save(f"{folder}/{kind}-{name}")
        run.train(AFTER)
        found[name] = run.result()
    return found


def resumed(folder: str, kind: str, source: str) -> dict[str, Any]:
    """Load into a fresh run of another kind or size, at the same place in the data, and go on."""
    found = {}
    for name in (*NAMES, "learned"):
        run = Run(kind, name)
        run.load(f"{folder}/{source}-{name}")
        validations = BEFORE // 2 if name == "learned" else 0
        for _ in range(BEFORE + validations):
            run.loop.draw()
        run.train(AFTER)
        found[name] = run.result()
    return found


@pytest.fixture(scope="module", params=["sharded", "replicated"])
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Any]:
    folder = str(tmp_path_factory.mktemp("saved"))
    first, _ = on_ranks(2, saved, folder, request.param)
    return folder, request.param, first


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Rates to 1e-6, weights to rounding."""
    for name, result in expected.items():
        assert found[name]["rates"].keys() == result["rates"].keys()
        for key, rate in result["rates"].items():
            close = {"rtol": 1e-6, "atol": 1e-6 if "alignment" in key or key == "weights" else 0.0}
            torch.testing.assert_close(found[name]["rates"][key], rate, **close)
        for key, weight in result["weights"].items():
            torch.testing.assert_close(found[name]["weights"][key], weight, rtol=1e-5, atol=1e-6)


@quiet
def test_a_checkpoint_of_two_ranks_is_resumed_on_four(checkpoints: tuple[str, str, Any]) -> None:
    folder, kind, expected = checkpoints
    for found in on_ranks(4, resumed, folder, kind, kind):
        check(found, expected)


@quiet
def test_a_checkpoint_of_two_ranks_is_resumed_on_one(checkpoints: tuple[str, str, Any]) -> None:
    folder, kind, expected = checkpoints
    check(resumed(folder, "whole", kind), expected)


# ---- state that does not fit


def plain_and_full() -> dict[str, Any]:
    """A state of whole tensors: refused by load_state_dict, taken by set_state_dict, which cuts it."""
    whole, sharded = Run("whole", "all"), Run("sharded", "all")
    whole.train(2)
    sharded.train(2)
    state = whole.loop.optimizer.state_dict()
    found: dict[str, Any] = {}
    for name, optimizer, wrong in (
        ("into sharded", sharded.loop.optimizer, state),
        ("into whole", whole.loop.optimizer, sharded.loop.optimizer.state_dict()),
    ):
        with pytest.raises(ValueError) as caught:
            optimizer.load_state_dict(wrong)
        found[name] = str(caught.value)
    full = StateDictOptions(full_state_dict=True)
    model, optimizer_state = get_state_dict(whole.loop.inner, whole.loop.optimizer)
    set_state_dict(
        sharded.loop.inner,
        sharded.loop.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer_state,
        options=full,
    )
    whole.train(2)
    sharded.train(2)
    return {**found, "whole": whole.result(), "sharded": sharded.result()}


def test_whole_and_sharded_states_are_told_apart() -> None:
    for found in on_ranks(2, plain_and_full):
        assert "state_dict must have the part of 'momentum_buffer'" in found["into sharded"]
        assert "StateDictOptions(full_state_dict=True)" in found["into sharded"]
        assert "state_dict must have the whole of 'momentum_buffer'" in found["into whole"]
        check({"all": found["sharded"]}, {"all": found["whole"]})


@quiet
def test_saving_before_the_first_step_changes_nothing(tmp_path: Path) -> None:
    plain, saving = Run("whole", "all"), Run("whole", "all")
    saving.save(str(tmp_path))
    plain.train(2)
    saving.load(str(tmp_path))
    saving.train(2)
    check({"all": saving.result()}, {"all": plain.result()})
    assert isinstance(saving.loop.optimizer, ours.HyperSGD)
