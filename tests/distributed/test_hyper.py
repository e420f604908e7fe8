"""Hypergradient optimizers on several ranks: the rates of one process on the joined batch, at every level."""

from typing import Any

import pytest
import torch
from tests.distributed.loops import Loop
from tests.distributed.ranks import Traffic, on_ranks
from torch import Tensor, nn

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")
STEPS = 6


def in_two_groups(named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """The matrices at one rate, the rest at another."""
    return [
        {"params": [(name, p) for name, p in named if (p.dim() > 1) is matrix], "lr": 0.1 if matrix else 0.05}
        for matrix in (True, False)
    ]


MAKE = {
    "global": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, levels=("global",)),
    "layer": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, levels=("layer",)),
    "unit": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, levels=("unit",)),
    "parameter": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, levels=("parameter",)),
    "all": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, nesterov=True, levels=ALL, weight_lr=0.2),
    "softmax": lambda named: ours.HyperAdam(
        named, lr=0.01, levels=("global", "layer", "unit"), combine="softmax", weight_lr=0.2
    ),
    "divide": lambda named: ours.HyperAdamW(
        named, lr=0.01, levels=ALL, combine="divide", rule="cosine", include_decay=True, weight_decay=0.1
    ),
    "additive": lambda named: ours.HyperRMSprop(
        named, lr=0.01, levels=("global", "unit"), rule="additive", hyper_lr=1e-4, reduce="mean"
    ),
    "log": lambda named: ours.HyperAdagrad(named, lr=0.05, levels=("layer", "unit"), rule="log", weight_lr=0.2),
    "pull": lambda named: ours.HyperSGD(
        named, lr=0.1, momentum=0.9, levels=ALL, pull={("layer", "global"): 0.2, ("parameter", "unit"): 0.1}
    ),
    "other units": lambda named: ours.HyperSGD(
        named, lr=0.1, levels=("layer", "unit"), layers="module", tie_bias=True, unit_dims={"0.weight": 1}
    ),
    "one rate": lambda named: ours.HyperSGD(in_two_groups(named), lr=0.1, momentum=0.9, scope="all"),
    "driven": lambda named: ours.HyperSGD(
        named, lr=0.1, levels=ALL, rule=lambda rates: torch.optim.Adam(rates, lr=0.02)
    ),
    "late": lambda named: ours.HyperAdam(named, lr=0.01, levels=ALL, weight_lr=0.2),
    "frozen": lambda named: ours.HyperSGD(named, lr=0.1, momentum=0.9, hyper_lr=0.0, weight_lr=0.0),
    "Hyper": lambda named: ours.Hyper(
        torch.optim.NAdam([p for _, p in named], lr=0.01), levels=("global", "layer", "unit"), weight_lr=0.2
    ),
}


#: How the model is spread, and which optimizer.
CASES = [
    *((kind, name) for kind in ("replicated", "sharded") for name in MAKE),
    *((kind, name) for kind in ("hybrid", "parallel") for name in ("all", "softmax", "pull", "other units")),
]


def numbers(rates: list[dict[str, Any]]) -> dict[str, Tensor]:
    """All that `rates()` says of what ranks share, counts and cosines included, by group, key and name."""
    found: dict[str, Tensor] = {}

    def collect(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[path] = value
        else:
            for name, part in value.items():
                collect(f"{path} {name}", part)

    for position, group in enumerate(rates):
        own = ("parameter", "combined") if "parameter" in group else ()
        collect(str(position), {key: value for key, value in group.items() if key not in own})
    return found


def trained(kind: str, name: str, steps: int = STEPS) -> dict[str, Any]:
    """Rates and weights after some steps, and what the last step of the optimizer sent."""
    loop = Loop(kind, MAKE[name])
    traffic = Traffic()
    for step in range(steps):
        loop.backward()
        if name == "late" and step in (0, 1, 3):  # one tensor joins late, another misses a step
            loop.inner[2 if step < 2 else 0].weight.grad = None
        traffic.messages.clear()
        with traffic:
            loop.optimizer.step()
    return {"rates": numbers(loop.optimizer.rates()), "weights": loop.weights(), "sent": traffic.messages}


def refused(call) -> str:
    """What a call says against it."""
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def flattened(levels: tuple[str, ...], safeguard: bool) -> None:
    """One step with parameters that FSDP1 has flattened."""
    torch.manual_seed(0)
    model = torch.distributed.fsdp.FullyShardedDataParallel(
        nn.Linear(4, 3), use_orig_params=True, device_id=torch.device("cpu")
    )
    optimizer = ours.HyperSGD(model.parameters(), lr=0.1, levels=levels, safeguard=safeguard)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def everything() -> dict[str, Any]:
    """What the tests below look at, in one process group."""
    found: dict[str, Any] = {(kind, name): trained(kind, name) for kind, name in CASES}
    found["flattened"] = refused(lambda: flattened(("global", "layer"), safeguard=False))
    found["flattened with the safeguard"] = refused(lambda: flattened(("parameter",), safeguard=True))
    flattened(("parameter",), safeguard=False)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return on_ranks(request.param, everything)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_rates_and_weights_are_those_of_one_process(found: list[dict[str, Any]], kind: str, name: str) -> None:
    expected = trained("whole", name)
    for rank in found:
        mine = rank[kind, name]
        assert mine["rates"].keys() == expected["rates"].keys()
        for key, rate in expected["rates"].items():
            assert torch.equal(mine["rates"][key], found[0][kind, name]["rates"][key])
            torch.testing.assert_close(mine["rates"][key], rate, rtol=1e-6, atol=1e-6 if "alignment" in key else 0.0)
        for key, weight in expected["weights"].items():
            torch.testing.assert_close(mine["weights"][key], weight, rtol=1e-5, atol=1e-6)


def test_replicated_parameters_send_nothing(found: list[dict[str, Any]]) -> None:
    assert all(rank["replicated", name]["sent"] == [] for rank in found for name in MAKE)


@pytest.mark.parametrize(
    ("name", "sums", "rows"),
    [
        *(("global", 3, 6), ("layer", 3, 6), ("unit", 3, 5 + 3 + 4), ("all", 6, 5 + 3 + 4), ("one rate", 3, 6)),
        ("parameter", 6, 6),  # for the safeguard
    ],
)
def test_sharded_parameters_send_one_message_of_row_sums(
    found: list[dict[str, Any]], name: str, sums: int, rows: int
) -> None:
    assert all(rank["sharded", name]["sent"] == [("allreduce", 8 * sums * rows)] for rank in found)


def test_frozen_rates_send_nothing(found: list[dict[str, Any]]) -> None:
    assert all(rank["sharded", "frozen"]["sent"] == [] for rank in found)


def test_flattened_parameters_are_refused_above_the_parameter_level(found: list[dict[str, Any]]) -> None:
    assert all("levels must be ('parameter',) for parameters that FSDP1" in rank["flattened"] for rank in found)
    assert all("safeguard must be False for parameters that FSDP1" in r["flattened with the safeguard"] for r in found)
