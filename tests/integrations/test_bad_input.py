"""What can be done wrong in a loop of one's own, and the one line that says what to do instead."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import digits, learned, network
from tests.integrations.mistakes import Mistake, check, rate, rows, sgd
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import metastep as ms
from metastep.integrations import AsScheduler


def learner(lr: ms.LearnedLR | None = None, **options: Any) -> ms.MetaLearner:
    """A MetaLearner; its validation loss is never asked for here."""
    return ms.MetaLearner(lr or rate(), lambda: torch.zeros(()), **options)


# ---- plain PyTorch


def plain_step_without_a_loss(folder: Path) -> None:
    lr = rate()
    lr.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    lr.optimizer.step()


def plain_learner_without_a_loss(folder: Path) -> None:
    one = learner()
    one.lr.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    one.step(meta=True)


def plain_twice(folder: Path) -> None:
    rate(rate().optimizer)


def plain_wrapper(folder: Path) -> None:
    rate(network())  # type: ignore[arg-type]


def plain_state_of_another(folder: Path) -> None:
    rate().load_state_dict(StepLR(sgd(), 1).state_dict())


def plain_learner_state_of_another(folder: Path) -> None:
    learner().load_state_dict(rate().state_dict())


def scheduler_of_a_schedule(folder: Path) -> None:
    AsScheduler(learned())  # type: ignore[arg-type]


def scheduler_beside_torchs(folder: Path) -> None:
    optimizer = sgd()
    StepLR(optimizer, 1)
    AsScheduler(rate(optimizer))


def scheduler_of_a_window(folder: Path) -> None:
    AsScheduler(learner(every=4, horizon=2, first_order=True))


def scheduler_twice(folder: Path) -> None:
    one = learner()
    AsScheduler(one)
    AsScheduler(one)


def scheduler_state_of_another(folder: Path) -> None:
    AsScheduler(rate()).load_state_dict(StepLR(sgd(), 1).state_dict())


PLAIN = {
    plain_step_without_a_loss: (
        RuntimeError,
        r"optimizer.step\(\) came without an observed loss.* call observe\(loss\)",
    ),
    plain_learner_without_a_loss: (RuntimeError, r"came without an observed loss.* call observe\(loss\)"),
    plain_twice: (ValueError, r"optimizer has a LearnedLR already; call its detach\(\) first"),
    plain_wrapper: (TypeError, r"optimizer must be a torch.optim.Optimizer \(of a wrapper, the one inside\), got Sequ"),
    plain_state_of_another: (ValueError, r"state_dict lacks .*; it is no LearnedLR state, or an older one"),
    plain_learner_state_of_another: (ValueError, r"state_dict lacks .*; it is no MetaLearner state, or an older one"),
    scheduler_of_a_schedule: (TypeError, r"source must be a LearnedLR or a MetaLearner, got MLRSNet"),
    scheduler_beside_torchs: (ValueError, r"optimizer must have no other scheduler.* make the optimizer without it"),
    scheduler_of_a_window: (ValueError, r"learner must have horizon 1 inside a trainer, got 2; write the loop"),
    scheduler_twice: (ValueError, r"learner has an AsScheduler already; use that one, or call its release\(\) first"),
    scheduler_state_of_another: (ValueError, r"the checkpoint is of a run with another scheduler, start this one anew"),
}

# ---- Accelerate


def accelerated(schedule: ms.Schedule | None = None) -> tuple[Any, Any, Any]:
    """An accelerator, a prepared optimizer, and its rate."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from metastep.integrations.accelerate import AcceleratedLR

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(sgd())
    return accelerator, optimizer, AcceleratedLR(accelerator, optimizer, schedule or learned(), num_classes=10)


def accelerate_twice(folder: Path) -> None:
    accelerator, optimizer, lr = accelerated()
    type(lr)(accelerator, optimizer, learned(), num_classes=10)


def accelerate_beside_torchs(folder: Path) -> None:
    accelerator, optimizer, lr = accelerated()
    lr.detach()
    StepLR(optimizer.optimizer, 1)
    type(lr)(accelerator, optimizer, learned(), num_classes=10)


def accelerate_before_torchs(folder: Path) -> None:
    _, optimizer, lr = accelerated()
    StepLR(optimizer.optimizer, 1)
    lr.observe(1.0)


def accelerate_step_without_a_loss(folder: Path) -> None:
    _, optimizer, _ = accelerated()
    optimizer.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    optimizer.step()


def accelerate_loaded_before_there_is_a_rate(folder: Path) -> None:
    accelerator, _, _ = accelerated()
    accelerator.save_state(str(folder))
    accelerator._custom_objects.clear()
    accelerator.load_state(str(folder))


ACCELERATE = {
    accelerate_twice: (ValueError, r"optimizer has a LearnedLR already"),
    accelerate_beside_torchs: (ValueError, r"optimizer must have no other scheduler"),
    accelerate_before_torchs: (ValueError, r"optimizer must have no other scheduler"),
    accelerate_step_without_a_loss: (RuntimeError, r"came without an observed loss.* call observe\(loss\)"),
    accelerate_loaded_before_there_is_a_rate: (RuntimeError, r"(?i)number of custom checkpoints"),  # Accelerate's own
}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(("library", "wrong", "kind", "message"), rows({"torch": PLAIN, "accelerate": ACCELERATE}))
def test_a_mistake_is_one_line_that_says_what_to_do(
    library: str, wrong: Mistake, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    check(
        library, wrong, kind, message, tmp_path, ours=wrong is not accelerate_loaded_before_there_is_a_rate
    )  # that is Accelerate's


# ---- another number of processes


def saved_by(processes: int, state: dict[str, Any]) -> dict[str, Any]:
    """The state as a run on so many processes saves it: it is the same on all of them, but for how many there are."""
    assert state["processes"] == 1
    return {**state, "processes": processes}


@pytest.mark.parametrize("kind", ["as scheduler", "accelerate"])
def test_a_state_of_another_number_of_processes_goes_on_with_a_warning(kind: str) -> None:
    if kind == "accelerate":
        pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
    first, second = (accelerated()[2] if kind == "accelerate" else AsScheduler(rate()) for _ in range(2))
    rates = []
    for one in (first, second):
        lr = one.lr if isinstance(one, AsScheduler) else one
        x, y = digits(8)
        for parameter, like in zip(lr.optimizer.param_groups[0]["params"], network().parameters(), strict=True):
            parameter.grad = torch.ones_like(like)
        lr.observe(cross_entropy(network()(x), y))
        lr.optimizer.step()
        if one is first:
            with pytest.warns(UserWarning, match=r"saved by a run on 2 processes, this one has 1: .* keep processes x"):
                second.load_state_dict(saved_by(2, first.state_dict()))
            assert (second.lr if isinstance(second, AsScheduler) else second).steps == 1
        rates.append(lr.steps)
    assert rates == [1, 2]
