"""Complex, empty and 0-d parameters: what they do to the rates is what their real and flat counterparts do."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import metastep as ms

LEVELS = [("global",), ("global", "layer"), ("global", "layer", "unit")]
FINE = [*LEVELS, ("unit",), ("parameter",), ("global", "layer", "unit", "parameter")]
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "HyperSGD": lambda p, **o: ms.HyperSGD(p, lr=0.1, momentum=0.9, **o),
    "HyperAdam": lambda p, **o: ms.HyperAdam(p, lr=0.1, **o),
    "HyperAdamW": lambda p, **o: ms.HyperAdamW(p, lr=0.1, **o),
    "HyperRMSprop": lambda p, **o: ms.HyperRMSprop(p, lr=0.01, **o),
    "HyperAdagrad": lambda p, **o: ms.HyperAdagrad(p, lr=0.1, **o),
    "HyperAdam, amsgrad": lambda p, **o: ms.HyperAdam(p, lr=0.1, amsgrad=True, **o),
    "Hyper(SGD)": lambda p, **o: ms.Hyper(torch.optim.SGD(p, lr=0.1), **o),
    "Hyper(NAdam)": lambda p, **o: ms.Hyper(torch.optim.NAdam(p, lr=0.1), **o),
}


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: torch.Tensor) -> None:
    """A step along each of the gradients."""
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 2), (4,), (2, 3, 2), ()])
@pytest.mark.parametrize("levels", FINE, ids="-".join)
@pytest.mark.parametrize("name", MAKERS)
def test_complex_parameters_adapt_as_their_real_and_imaginary_parts_do(
    name: str, levels: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=draw, dtype=torch.complex128)
    gradients = torch.randn(5, *shape, generator=draw, dtype=torch.complex128)
    weight, parts = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    optimizer, other = (MAKERS[name]([parameter], levels=levels) for parameter in (weight, parts))
    steps(optimizer, weight, gradients)
    steps(other, parts, torch.view_as_real(gradients))
    assert (optimizer.rates()[0]["combined"]["0"] != other.param_groups[0]["lr"]).any()
    torch.testing.assert_close(torch.view_as_real(weight.detach()), parts.detach(), rtol=1e-10, atol=1e-12)
    for level in levels:
        mine, theirs = optimizer.rates()[0][level], other.rates()[0][level]
        if level != "global":
            mine, theirs = mine["0"], theirs["0"]
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("levels", [*LEVELS, ("global", "parameter")], ids="-".join)
@pytest.mark.parametrize("name", MAKERS)
def test_a_0d_parameter_adapts_as_one_of_a_single_element_does(name: str, levels: tuple[str, ...]) -> None:
    gradients = torch.randn(5, generator=torch.Generator().manual_seed(1))
    scalar, vector = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([1.0]))
    optimizer, other = (MAKERS[name]([parameter], levels=levels) for parameter in (scalar, vector))
    steps(optimizer, scalar, gradients)
    steps(other, vector, gradients[:, None])
    assert scalar.detach() != 1.0
    torch.testing.assert_close(scalar.detach(), vector.detach()[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_parameter_changes_nothing_for_the_others(name: str, shape: tuple[int, ...]) -> None:
    gradients = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2))
    weight, alone, empty = (nn.Parameter(torch.ones(size)) for size in ((3, 2), (3, 2), shape))
    empty.grad = torch.ones(shape)
    optimizer, other = MAKERS[name]([weight, empty], levels=LEVELS[1]), MAKERS[name]([alone], levels=LEVELS[1])
    steps(optimizer, weight, gradients)
    steps(other, alone, gradients)
    torch.testing.assert_close(optimizer.rates()[0]["global"], other.rates()[0]["global"])
    torch.testing.assert_close(weight.detach(), alone.detach())


def test_nothing_but_empty_parameters_is_a_step_all_the_same() -> None:
    for name, make in MAKERS.items():
        empty = nn.Parameter(torch.ones(0, 3))
        empty.grad = torch.ones(0, 3)
        optimizer = make([empty])
        for _ in range(3):
            optimizer.step()
        assert torch.isfinite(optimizer.rates()[0]["global"]), name


@pytest.mark.filterwarnings("ignore:MLRSNet measures the scale of its rate by a rule for sgd")
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_schedule_learns_the_same_from_complex_parameters_as_from_their_parts(make: type) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.complex128)
    biases = []
    for real in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.view_as_real(start).clone() if real else start.clone())
        optimizer = make([weight], lr=0.1)
        lr = ms.LearnedLR(optimizer, ms.MLRSNet(hidden_size=3).double(), num_classes=4, initial_loss=1.0)

        def loss(weight: nn.Parameter = weight, real: bool = real) -> torch.Tensor:
            value = torch.view_as_complex(weight) if real else weight
            return (value.abs() - 1).square().sum()

        learner = ms.MetaLearner(lr, loss, every=1, meta_lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            current = loss()
            current.backward()
            lr.observe(current)
            learner.step()
        assert learner.meta_updates == 4
        biases.append(lr.schedule.output.bias.detach())
    torch.testing.assert_close(*biases, rtol=1e-8, atol=1e-10)


def test_a_complex_loss_is_refused_in_a_line() -> None:
    weight = nn.Parameter(torch.ones(2))
    lr = ms.LearnedLR(torch.optim.SGD([weight], lr=0.1), ms.MLRSNet(hidden_size=3), num_classes=4)
    for loss in (torch.tensor(1 + 2j), 1 + 2j):
        with pytest.raises((TypeError, ValueError), match="loss must be "):
            lr.observe(loss)
