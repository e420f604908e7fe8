"""ReduceOnPlateau against torch's on window means, resumed, saved, on an optimizer; GreedyLR against transformers'."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import metastep as ms
from metastep.schedules import GreedyLR, ReduceOnPlateau, load_schedule, save_schedule


def losses(steps):
    """Falling with noise, then flat, then a jump down."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = [math.exp(-t / 30) + 0.5 - 0.3 * (t > 3 * steps // 4) for t in range(steps)]
    return [mean + 0.02 * float(noise[t]) for t, mean in enumerate(level)]


VARIANTS = [
    {"every": 5, "patience": 2, "factor": 0.5},
    {"every": 1, "patience": 0, "factor": 0.9, "threshold": 0.1},
    {"every": 3, "patience": 1, "factor": 0.5, "threshold_mode": "abs", "threshold": 0.05, "cooldown": 3},
    {"every": 4, "patience": 1, "factor": 0.1, "min_factor": 0.05},
]


def factors(schedule, values, state=None):
    state, found = schedule.init_state() if state is None else state, []
    for loss in values:
        factor, state = schedule.query(loss, state)
        found.append(factor)
    return found, state


@pytest.mark.parametrize("arguments", VARIANTS)
def test_it_is_torchs_on_the_means_of_windows(arguments):
    values, lr = losses(400), 0.3
    torch_arguments = {key: value for key, value in arguments.items() if key not in ("every", "min_factor")}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = ReduceLROnPlateau(optimizer, eps=0.0, min_lr=lr * arguments.get("min_factor", 0.0), **torch_arguments)
    expected, window = [], []
    for loss in values:
        expected.append(optimizer.param_groups[0]["lr"])
        window.append(loss)
        if len(window) == arguments["every"]:
            scheduler.step(sum(window) / len(window))
            window = []
    found, _ = factors(ReduceOnPlateau(**arguments), values)
    assert [lr * factor for factor in found] == pytest.approx(expected, rel=1e-12)
    assert len(set(found)) >= 3


@pytest.mark.parametrize("arguments", VARIANTS)
def test_a_run_resumed_within_a_window_goes_on_the_same(arguments):
    values = losses(200)
    whole, _ = factors(ReduceOnPlateau(**arguments), values)
    _, state = factors(ReduceOnPlateau(**arguments), values[:101])
    saved = json.loads(json.dumps({"config": ReduceOnPlateau(**arguments).config(), "state": state}))
    rest, _ = factors(ReduceOnPlateau(**saved["config"]), values[101:], tuple(saved["state"]))
    assert rest == whole[101:]


def test_tensors_are_read_as_numbers_are():
    plateau = ReduceOnPlateau(**VARIANTS[0])
    state, found = plateau.init_state(), []
    for loss in losses(200):
        factor, state = plateau(torch.tensor(loss, dtype=torch.float64), state)
        found.append(factor)
    assert found == factors(plateau, losses(200))[0]


def test_it_lowers_the_rate_of_every_group_and_ignores_a_loss_that_is_not_finite():
    p, q = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 1.0}, {"params": [q], "lr": 0.1}])
    lr = ms.LearnedLR(optimizer, ReduceOnPlateau(every=2, patience=1, factor=0.5))
    used = []
    for loss in [1.0, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0]:
        p.grad = torch.zeros(1)
        lr.observe(loss)
        optimizer.step()
        used.append(lr.get_last_lr())
    assert used[-1] == [0.5, 0.05]
    assert used[5] == [1.0, 0.1]
    assert lr.non_finite_losses == 1
    other = ms.LearnedLR(torch.optim.SGD([{"params": [p], "lr": 1.0}, {"params": [q], "lr": 0.1}]), ReduceOnPlateau(2))
    other.load_state_dict(lr.state_dict())
    assert other.state == lr.state


def test_it_is_read_back_from_a_file(tmp_path):
    plateau = ReduceOnPlateau(**VARIANTS[2])
    save_schedule(plateau, tmp_path / "plateau.safetensors")
    again = load_schedule(tmp_path / "plateau.safetensors")
    assert type(again) is ReduceOnPlateau
    assert again.config() == plateau.config()
    assert eval(repr(plateau)).config() == plateau.config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\], got 0.0"),
        ({"patience": -1}, "patience must be a whole number >= 0, got -1; count in windows"),
        ({"threshold": math.nan}, r"threshold must be in \[0, inf\), got nan"),
        ({"threshold_mode": "max"}, "threshold_mode must be 'rel' or 'abs', got 'max'"),
        ({"cooldown": 1.5}, "cooldown must be a whole number >= 0"),
        ({"min_factor": 2.0}, r"min_factor must be in \[0, 1\], got 2.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ReduceOnPlateau(**arguments)


# ---- GreedyLR

GREEDY = [
    {"window": 5, "patience": 2, "factor": 0.8},
    {"window": 1, "patience": 0, "factor": 0.9, "threshold": 0.1, "max_factor": 1.5},
    {"window": 20, "patience": 1, "factor": 0.5, "cooldown": 3, "warmup": 2, "min_factor": 0.1, "reset": 4},
    {"window": 3, "patience": 1, "factor": 0.3, "min_factor": 0.2, "reset": 2},
]


@pytest.mark.parametrize("arguments", GREEDY)
def test_greedy_is_transformers_on_streaming_means(arguments):
    theirs = pytest.importorskip("transformers.optimization").GreedyLR
    names = {"window": "window_size", "reset": "reset_start"}
    given = {names.get(key, key): value for key, value in arguments.items() if not key.endswith("_factor")}
    ours, lr = GreedyLR(**arguments), 0.3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    bounds = {"min_lr": lr * ours.min_factor, "max_lr": lr * ours.max_factor}
    scheduler, expected = theirs(optimizer, smooth=True, eps=0.0, **bounds, **given), []
    for loss in losses(400):
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    found, _ = factors(ours, losses(400))
    assert [lr * factor for factor in found] == pytest.approx(expected, rel=1e-9)
    assert len(set(found)) >= 4
    if "reset" in arguments:
        at_the_bound = [before for before, after in pairwise(found) if after == 1.0 and before == ours.min_factor]
        assert at_the_bound  # it has started anew


def test_greedy_refuses_a_factor_that_changes_nothing():
    with pytest.raises(ValueError, match=r"^factor must be < 1, got 1.0; 1 would never change the rate"):
        GreedyLR(factor=1.0)
    with pytest.raises(ValueError, match=r"^max_factor must be in \[1, inf\), got 0.5"):
        GreedyLR(max_factor=0.5)
