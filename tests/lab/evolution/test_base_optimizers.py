"""The optimizers of vectorised training are those of torch, network by network."""

import pytest
import torch
from torch import Tensor

from metastep.lab.evolution.base_optimizers import make_base_optimizer


def gradient_of(parameters: Tensor, step: int) -> Tensor:
    """A gradient that depends on where a network is, so that errors grow."""
    return torch.sin(parameters * (1 + step % 3)) + 0.1 * parameters


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("sgd", {"momentum": 0.0, "weight_decay": 0.0}),
        ("sgd", {"momentum": 0.9, "weight_decay": 1e-2}),
        ("adamw", {"weight_decay": 0.1}),
    ],
)
def test_each_network_is_trained_as_torch_would_train_it_at_its_rates(base: str, options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    population = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    rates = torch.rand(40, 3, generator=generator, dtype=torch.float64) * 0.1
    alone = [torch.nn.Parameter(member.clone()) for member in population]
    theirs = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizers = [theirs[base]([parameter], lr=1.0, **options) for parameter in alone]
    optimizer = make_base_optimizer(
        base, population, momentum=options.get("momentum", 0.0), weight_decay=options["weight_decay"]
    )
    for step, rate in enumerate(rates):
        optimizer.step(population, gradient_of(population, step), rate, torch.ones(3, dtype=torch.float64))
        for parameter, single, own in zip(alone, optimizers, rate, strict=True):
            parameter.grad = gradient_of(parameter.detach(), step)
            single.param_groups[0]["lr"] = float(own)
            single.step()
    torch.testing.assert_close(population, torch.stack([p.detach() for p in alone]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_pieces_of_a_row_can_have_rates_of_their_own(base: str) -> None:
    """Each piece moves as in a row that has its rate throughout."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    rates, taken = torch.rand(2, 3, generator=generator, dtype=torch.float64), torch.tensor([1.0, 0.0]).double()
    populations = [start.clone() for _ in range(4)]
    for population, rate in zip(populations, [*rates.unbind(1), rates], strict=True):
        optimizer = make_base_optimizer(base, population, momentum=0.9, weight_decay=0.01)
        optimizer.step(population, gradient_of(start, 1), rate, taken)
    expected = torch.stack([p.view(2, 3, 4)[:, piece] for piece, p in enumerate(populations[:3])], 1)
    assert torch.equal(populations[3].view(2, 3, 4), expected)
    assert torch.equal(populations[3][1], start[1])
    assert not torch.equal(populations[3][0], start[0])


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_network_that_skips_a_step_stays_as_it_is_and_the_others_do_not_notice(base: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    populations, ours = [], []
    for _ in range(2):
        population = start.clone()
        populations.append(population)
        ours.append(make_base_optimizer(base, population, momentum=0.9, weight_decay=0.01))
    rate, taken = torch.full((2,), 0.1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for step in range(3):
        skipping = torch.tensor([float(step != 1), 1.0], dtype=torch.float64)
        before, state = populations[0][0].clone(), [part[0].clone() for part in ours[0].state()]
        ours[0].step(populations[0], gradient_of(populations[0], step), rate, skipping)
        ours[1].step(populations[1], gradient_of(populations[1], step), rate, taken)
        if step == 1:
            assert torch.equal(populations[0][0], before)
            kept = [part[0] for part in ours[0].state()][1 if base == "adamw" else 0 :]  # a direction is made anew
            assert all(map(torch.equal, kept, state[1 if base == "adamw" else 0 :]))
    assert torch.equal(populations[0][1], populations[1][1])


def test_an_unknown_base_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"base must be 'sgd' or 'adamw', got 'lion'"):
        make_base_optimizer("lion", torch.zeros(1, 1), momentum=0.0, weight_decay=0.0)  # type: ignore[arg-type]
