"""Float16 on a GPU, in a plain loop and in each trainer: the rates of float32, skipped steps, and a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import Noting, learned
from tests.integrations.half import KINDS, OPTIMIZERS, SCHEDULES, Loop, flat, rates, windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the libraries' advice, which differs from version to version
]

#: Float16 keeps 11 bits of what goes into a rate; hypergradients add up their roundings.
CLOSE = {"learned": 5e-3, "calibrated": 2e-2, "hyper-sgd": 2e-2, "hyper-adamw": 2e-2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rates_are_those_of_float32(kind: str) -> None:
    half, single = Loop(kind).train(), Loop(kind, half=False).train()
    assert all(half.taken)
    expected = rates(single.optimizer, single.used)
    assert rates(half.optimizer, half.used) == pytest.approx(expected, rel=CLOSE[kind])
    assert half.losses == pytest.approx(single.losses, rel=0.02)
    assert half.losses != single.losses  # which shows that it was float16


@pytest.mark.parametrize(("kind", "fused"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in SCHEDULES)])
def test_a_step_skipped_by_an_overflow_moves_nothing(kind: str, fused: bool) -> None:
    loop = Loop(kind, overflows=(6, 7), **({"fused": True} if fused else {})).train()
    assert [step for step, went in enumerate(loop.taken) if not went] == [6, 7]
    torch.testing.assert_close(loop.before[7], loop.before[6], rtol=0, atol=0)
    torch.testing.assert_close(loop.before[8], loop.before[6], rtol=0, atol=0)
    if loop.lr is not None:
        assert loop.lr.steps == 18
        assert loop.lr.non_finite_losses == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_steps_loss_counts_in_the_next_one(fused: bool) -> None:
    schedule = Noting()
    loop = Loop("learned", overflows=(6, 7), schedule=schedule, fused=fused).train()
    assert schedule.losses == pytest.approx(windows(loop.losses, loop.taken), rel=1e-5)
    assert loop.lr is not None
    assert loop.lr.get_last_lr() == pytest.approx([0.1 / (1 + schedule.losses[-1])])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_after_skipped_steps_the_run_is_one_that_never_saw_their_batches(kind: str) -> None:
    skipping, without = Loop(kind, overflows=(6, 7)).train(), Loop(kind, leaves_out=(6, 7)).train()
    assert rates(skipping.optimizer, []) == pytest.approx(rates(without.optimizer, []), rel=1e-6)
    torch.testing.assert_close(flat(skipping.model), flat(without.model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    undisturbed, after = Loop(kind, overflows=(6,)).train(7), Loop(kind, overflows=(6,))
    torch.save(undisturbed.state_dict(), tmp_path / "checkpoint.pt")  # with the loss of a skipped step in its window
    used = len(undisturbed.used)
    after.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    after.done = 7
    undisturbed.train(8)
    after.train(8)
    expected = rates(undisturbed.optimizer, undisturbed.used[used:])
    assert rates(after.optimizer, after.used) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(flat(after.model), flat(undisturbed.model))


# ---- trainers: six steps in each, in float16 or float32


def accelerated(kind: str, folder: Path, **options: Any) -> Any:
    pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
    from tests.integrations.half_trainers import accelerated

    return accelerated(kind, folder, **options)


def transformed(kind: str, folder: Path, **options: Any) -> Any:
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason="Transformers is not installed: the extra [transformers]")
    from tests.integrations.half_trainers import transformed

    return transformed(kind, folder, **options)


def lit(kind: str, folder: Path, **options: Any) -> Any:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
    from tests.integrations.half_trainers import lit

    return lit(kind, folder, **options)


TRAINERS = pytest.mark.parametrize("trainer", [accelerated, transformed, lit])


@TRAINERS
@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_gives_the_rates_of_float32(trainer: Any, kind: str, tmp_path: Path) -> None:
    half, single = trainer(kind, tmp_path), trainer(kind, tmp_path, half=False)
    assert len(half.losses) == len(half.used) == len(single.used) == 6
    assert half.rates == pytest.approx(single.rates, rel=CLOSE[kind])
    assert half.losses == pytest.approx(single.losses, rel=0.02)
    assert half.losses != single.losses


@TRAINERS
def test_an_overflow_does_not_advance_the_schedule_and_its_loss_counts_next(trainer: Any, tmp_path: Path) -> None:
    schedule = Noting()
    run = trainer("learned", tmp_path, schedule=schedule, overflows=True)
    skipped = 6 - len(run.used)
    assert 0 < skipped < 6
    taken = [step >= skipped for step in range(6)]
    assert schedule.losses == pytest.approx(windows(run.losses, taken), rel=2e-3)
    assert run.used == pytest.approx([run.base / (1 + loss) for loss in schedule.losses])


@TRAINERS
@pytest.mark.parametrize("kind", KINDS)
def test_a_trainers_resumed_run_goes_on_as_if_nothing_had_happened(trainer: Any, kind: str, tmp_path: Path) -> None:
    undisturbed = trainer(kind, tmp_path, save_at=3)
    after = trainer(kind, tmp_path, resume_at=3)
    assert len(after.used) == 3
    assert after.used == pytest.approx(undisturbed.used[3:], rel=1e-4)
    assert after.rates[-3:] == pytest.approx(undisturbed.rates[-3:], rel=1e-4)
    torch.testing.assert_close(flat(after.model), flat(undisturbed.model), rtol=1e-4, atol=1e-5)


@TRAINERS
def test_a_trainer_learns_a_schedule_in_float16(trainer: Any, tmp_path: Path) -> None:
    half, single = (trainer("meta", tmp_path, half=half) for half in (True, False))
    assert half.meta_updates == single.meta_updates == 3
    assert len(half.used) == len(single.used) == 6
    assert half.used == pytest.approx(single.used, rel=2e-2)
    assert not torch.equal(flat(half.schedule), flat(learned()))
