"""A meta-learning run that is saved and loaded goes on bit for bit, and copies go their own ways."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from tests.schedules.loops import Regression, net

import metastep as ms

META = {
    "default": lambda weights: None,
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9),
}


def start(meta: str, horizon: int) -> tuple[Regression, ms.LearnedLR, ms.MetaLearner]:
    run = Regression(lambda p: torch.optim.AdamW(p, lr=0.01))
    schedule = ms.Phased([net(0), net(1)], total_steps=20) if meta == "momentum" else net()
    lr = ms.LearnedLR(run.optimizer, schedule, num_classes=3, warmup_steps=4)
    optimizer = META[meta](schedule.parameters())
    learner = ms.MetaLearner(
        lr, lambda: run.loss(39), every=3, meta_optimizer=optimizer, horizon=horizon, first_order=horizon > 1
    )
    return run, lr, learner


def train(run: Regression, lr: ms.LearnedLR, learner: ms.MetaLearner, steps: range) -> list[list[float]]:
    used = []
    for step in steps:
        lr.observe(run.backward(step))
        learner.step()
        used.append([*lr.get_last_lr(), learner.last_meta_loss])
    return used


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("lr_first", [False, True])
@pytest.mark.parametrize("meta", META)
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(meta: str, lr_first: bool, horizon: int) -> None:
    whole = start(meta, horizon)
    expected = train(*whole, range(20))

    run, lr, learner = start(meta, horizon)
    found = train(run, lr, learner, range(10))
    file = io.BytesIO()
    parts = [run.model.state_dict(), run.optimizer.state_dict(), lr.state_dict(), learner.state_dict()]
    torch.save([*parts, torch.random.get_rng_state()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, other_lr, other_learner = start(meta, horizon)
    train(other, other_lr, other_learner, range(3))
    steps = [
        lambda: other.optimizer.load_state_dict(saved[1]),
        lambda: other_lr.load_state_dict(saved[2]),
        lambda: other_learner.load_state_dict(saved[3]),
    ]
    for load in reversed(steps) if lr_first else steps:
        load()
    other.model.load_state_dict(saved[0])
    torch.random.set_rng_state(saved[4])
    assert found + train(other, other_lr, other_learner, range(10, 20)) == expected
    assert other_learner.meta_updates == whole[2].meta_updates == 6
    for p, q in zip(other_lr.schedule.parameters(), whole[1].schedule.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_dict_shares_nothing_with_the_learner() -> None:
    run, lr, learner = start("default", 1)
    train(run, lr, learner, range(3))
    saved = learner.state_dict()
    kept = copy.deepcopy(saved)
    train(run, lr, learner, range(3, 9))
    torch.testing.assert_close(saved["meta_optimizer"]["state"], kept["meta_optimizer"]["state"], rtol=0, atol=0)


def test_a_wrong_state_is_refused_by_name() -> None:
    learner = start("default", 1)[2]
    saved = learner.state_dict()
    with pytest.raises(ValueError, match="state_dict lacks calls, meta_updates"):
        learner.load_state_dict({k: v for k, v in saved.items() if k not in ("calls", "meta_updates")})
    with pytest.raises(ValueError, match="schema 99"):
        learner.load_state_dict({**saved, "schema": 99})


def test_an_open_window_of_several_steps_refuses_to_be_saved() -> None:
    run, lr, learner = start("default", 2)
    train(run, lr, learner, range(2))
    assert learner.in_window
    with pytest.raises(RuntimeError, match="in_window is False"):
        learner.state_dict()
    train(run, lr, learner, range(2, 3))
    assert not learner.in_window
    assert learner.state_dict()["meta_updates"] == 1


class Job:
    """Everything of one run; a method as the validation loss, so that a copy has its own."""

    def __init__(self) -> None:
        self.run = Regression(lambda p: torch.optim.Adam(p, lr=0.01))
        self.lr = ms.LearnedLR(self.run.optimizer, net(), num_classes=3)
        self.learner = ms.MetaLearner(self.lr, self.validation, every=2)

    def validation(self) -> torch.Tensor:
        return self.run.loss(39)


def test_a_deep_copy_goes_its_own_way() -> None:
    job = Job()
    train(job.run, job.lr, job.learner, range(5))
    reference = copy.deepcopy(job)
    stream = torch.random.get_rng_state()
    expected = train(job.run, job.lr, job.learner, range(5, 10))
    torch.random.set_rng_state(stream)
    assert train(reference.run, reference.lr, reference.learner, range(5, 10)) == expected
    assert not set(map(id, reference.lr.schedule.parameters())) & set(map(id, job.lr.schedule.parameters()))


COMPILED = """
import copy, torch, metastep as ms
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double()
x, y = torch.randn(8, 3).double(), torch.randn(8, 1).double()
schedule = ms.MLRSNet(4).double()
ends = []
for form in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
    net = copy.deepcopy(model)
    called = form(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    lr = ms.LearnedLR(optimizer, copy.deepcopy(schedule), num_classes=3)
    loss_of = lambda: (called(x) - y).square().mean()
    learner = ms.MetaLearner(lr, loss_of, every=2)
    graphs = []
    for step in range(6):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        learner.step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert learner.meta_updates == 3
    assert graphs[1] == graphs[-1], graphs  # nothing is compiled again after the first look-ahead
    ends.append([t.detach().clone() for t in (*net.state_dict().values(), *lr.schedule.parameters())])
torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
assert int(ends[1][list(net.state_dict()).index("1.num_batches_tracked")]) == 6
"""


def test_a_compiled_model_learns_the_same_without_compiling_again() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
