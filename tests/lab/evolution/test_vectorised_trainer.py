"""Networks in vectorised training: what they share, what they do not, and that their rates are those in use."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import metastep as ms
from metastep.core.signals import SIGNALS
from metastep.lab.evolution import Policy
from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.networks import MLP, Network, Transformer
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.vectorised_trainer import WORST_LOSS, Packing, VectorisedTrainer
from metastep.schedules.signal_schedule import Scope

NETWORKS = [MLP(5, (8, 3), 2, "relu", "batch", 1.0), Transformer(11, 8, 2, 2, 7)]


def weights_of(policy: Policy, count: int, spread: float = 0.3) -> torch.Tensor:
    """Random weights, one row a schedule."""
    return torch.randn(count, policy.size, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_networks_train_as_each_would_alone(scope: Scope, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope)
    weights, rates = weights_of(policy, 3).double(), torch.tensor([0.01, 0.1, 1.0])
    together = VectorisedTrainer(spec, "sgd", policy, rates, dtype=torch.float64)
    trained, valid = together.run(weights)
    for place in range(3):
        row = slice(place, place + 1)
        alone = VectorisedTrainer(spec, "sgd", policy, rates[row], dtype=torch.float64)
        alone_trained, alone_valid = alone.run(weights[row])
        torch.testing.assert_close(alone.parameters, together.parameters[row], rtol=0, atol=1e-9)
        torch.testing.assert_close(torch.cat((alone_trained, alone_valid)), torch.stack((trained, valid))[:, place])


class Spoiled(MLP):
    """A perceptron whose gradient, at some calls, is multiplied by a factor in one of its parameters only."""

    def spoil(self, factors: dict[int, float]) -> None:
        self.factors, self.calls = factors, 0

    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        factor = self.factors.get(self.calls, 1.0)
        self.calls += 1
        first, *others = parameters
        return super().forward([first.detach() + (first - first.detach()) * factor, *others], inputs)


SOUND: dict[int, float] = {}
BRAKED = {12: 1e4, 26: torch.nan}


@pytest.mark.parametrize("scope", ["network", "layer"])
@pytest.mark.parametrize(
    ("known", "factors"),
    [((True, True), SOUND), ((True, True), BRAKED), ((False, True), BRAKED), ((True, False), BRAKED)],
    ids=["sound", "skipped", "skipped, no horizon", "skipped, no loss"],
)
@pytest.mark.parametrize(("base", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)])
def test_a_network_gets_the_rates_that_learned_lr_would_set(
    base: Base, momentum: float, known: tuple[bool, bool], factors: dict[int, float], scope: Scope,
    policy: Policy, spec: TaskSpec,
) -> None:  # fmt: skip
    """Training and use share one definition: the same task in a torch loop, with SignalSchedule.

    One gradient is far out of range, one not a number, both in one parameter tensor: the others go on as if alone.
    """
    steps = 30
    spec = dataclasses.replace(spec, momentum=momentum, weight_decay=0.01, steps=steps)
    bounds = policy.bounds._replace(max_increase=6.0, max_decrease=6.0)  # within its bounds to the end
    policy = policy._replace(scope=scope, signals=SIGNALS, bounds=bounds)
    horizon_known, loss_known = known
    weights = weights_of(policy, 1).double()
    options = {"horizon_known": horizon_known, "loss_known": loss_known, "dtype": torch.float64}
    trainer, alone = (VectorisedTrainer(spec, base, policy, torch.tensor([0.02]), **options) for _ in range(2))
    for one in (trainer, alone):
        one.network.__class__ = Spoiled
        one.network.spoil(factors)
    parameters = [nn.Parameter(part[0].clone()) for part in alone.packing.split(alone.parameters)]
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    extra = {"momentum": momentum} if base == "sgd" else {}
    optimizer = kinds[base](parameters, lr=0.02, weight_decay=0.01, **extra)
    schedule = ms.SignalSchedule(policy.signals, policy.hidden, scope=scope, bounds=policy.bounds).double()
    schedule.load_flat(weights[0])
    lr = ms.LearnedLR(optimizer, schedule, total_steps=steps if horizon_known else None)
    for _ in range(steps):
        inputs, targets = alone.next_batch()
        outputs = alone.network.forward([p[None] for p in parameters], inputs)[0]
        loss = nn.functional.cross_entropy(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if loss_known:
            lr.observe(loss)
        optimizer.step()
        trainer.advance(weights, 1)
        mine = trainer.displacement_rate.flatten().tolist()
        assert lr.get_last_lr() == pytest.approx(mine, rel=1e-5)
    assert lr.skipped_steps == trainer.signals.skips[0] == len(factors)
    assert len(set(mine)) == trainer.log_multiplier.numel()
    for mine, part in zip(trainer.packing.split(trainer.parameters), parameters, strict=True):
        torch.testing.assert_close(part.detach(), mine[0], rtol=1e-5, atol=1e-7)


def test_with_a_calibrated_first_step_the_initial_rate_decides_nothing_but_the_first_step(
    policy: Policy, spec: TaskSpec
) -> None:
    spec = dataclasses.replace(spec, steps=60, momentum=0.0)
    policy = policy._replace(bounds=policy.bounds._replace(max_increase=5.0, max_decrease=5.0))
    rates = torch.tensor([1e-6, 1e-4, 1e-3])
    trainer = VectorisedTrainer(spec, "sgd", policy, rates, dtype=torch.float64)
    trainer.run(weights_of(policy, 1).double().expand(3, -1))
    used = trainer.rates * trainer.log_multiplier.exp()
    assert used.max() / used.min() < 1.02
    still = VectorisedTrainer(
        spec, "sgd", policy._replace(bounds=policy.bounds._replace(initial_update=0.0)), rates, dtype=torch.float64
    )
    still.run(weights_of(policy, 1).double().expand(3, -1))
    used = still.rates * still.log_multiplier.exp()
    assert used.max() / used.min() > 100


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_a_network_that_is_lost_leaves_the_others_alone(scope: Scope, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope)
    weights = weights_of(policy, 2)
    sound, with_lost = (VectorisedTrainer(spec, "sgd", policy, torch.full((2,), 0.1)) for _ in range(2))
    with torch.no_grad():
        with_lost.parameters[0] = torch.inf
    _, expected = sound.run(weights)
    training, validation = with_lost.run(weights)
    assert validation[0] == training[0] == WORST_LOSS
    assert torch.equal(validation[1], expected[1])
    assert with_lost.signals.skips[0] == spec.steps


@pytest.mark.parametrize(("scope", "recurrent"), [("network", False), ("layer", False), ("layer", True)])
def test_training_stops_and_goes_on_bit_for_bit(scope: Scope, recurrent: bool, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope, recurrent=recurrent)
    weights, rates = weights_of(policy, 2), torch.full((2,), 0.1)
    undisturbed, stopped, resumed = (VectorisedTrainer(spec, "adamw", policy, rates) for _ in range(3))
    undisturbed.advance(weights, 12)
    stopped.advance(weights, 5)
    resumed.load_state_dict(stopped.state_dict())
    resumed.advance(weights, 7)
    assert torch.equal(undisturbed.parameters, resumed.parameters)
    assert torch.equal(undisturbed.log_multiplier, resumed.log_multiplier)
    assert undisturbed.log_multiplier.unique().numel() == undisturbed.log_multiplier.numel()


def test_a_scope_that_cannot_be_is_refused(policy: Policy, spec: TaskSpec) -> None:
    with pytest.raises(ValueError, match=r"scope must be 'network' or 'layer', got 'tensor'"):
        VectorisedTrainer(spec, "sgd", policy._replace(scope="tensor"), torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"signals must name one of alignment, .* at least, got loss;"):
        VectorisedTrainer(spec, "sgd", policy._replace(scope="layer", signals=("loss",)), torch.ones(1))


def rows_of(network: Network, packing: Packing, seed: int) -> torch.Tensor:
    flat = torch.randn(3, network.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return packing.join(network.split(flat), flat.new_empty(3, packing.width))


@pytest.mark.parametrize("network", NETWORKS, ids=["perceptron", "transformer"])
@pytest.mark.parametrize("piece", [1, 4, 32])
def test_sums_and_values_of_layers_are_those_of_their_parameters(network: Network, piece: int) -> None:
    packing = Packing(network, piece, torch.zeros(0, dtype=torch.float64))
    x, y = rows_of(network, packing, 0), rows_of(network, packing, 1)
    pairs = list(zip(packing.split(x), packing.split(y), strict=True))
    along = torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs], 1)
    squares = [
        torch.stack([part.square().flatten(1).sum(1) for part in parts], 1) for parts in zip(*pairs, strict=True)
    ]
    torch.testing.assert_close(packing.sums(x * y, x, y), torch.stack((along, *squares)))
    values = torch.rand(3, packing.layers, dtype=torch.float64)
    for part, value in zip(packing.split(packing.of_parameters(values)), values.unbind(1), strict=True):
        assert torch.equal(part.flatten(1), value[:, None].expand(-1, part[0].numel()))
    assert torch.equal(packing.of_pieces(values).repeat_interleave(piece, 1), packing.of_parameters(values))


@pytest.mark.parametrize("network", NETWORKS, ids=["perceptron", "transformer"])
def test_what_is_not_finite_in_a_layer_stays_there(network: Network) -> None:
    packing = Packing(network, 4, torch.zeros(0, dtype=torch.float64))
    x = rows_of(network, packing, 0)
    sound = packing.sums(x * x, x)
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        packing.split(spoiled)[2].view(3, -1)[1, 0] = bad
        found = packing.sums(spoiled * spoiled, spoiled)
        assert not found[:, 1, 2].isfinite().any()
        found[:, 1, 2] = sound[:, 1, 2]
        assert torch.equal(found, sound)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_what_is_left_over_behind_a_layer_stays_0_in_training(base: Base, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope="layer")
    trainer = VectorisedTrainer(spec, base, policy, torch.tensor([0.1, 1.0]))
    ones = [torch.ones_like(part) for part in trainer.packing.split(trainer.parameters)]
    left = trainer.packing.join(ones, torch.empty_like(trainer.parameters)) == 0
    before = trainer.parameters.clone()
    trainer.run(torch.zeros(2, policy.size))
    assert int(left.sum()) == 2 * (32 - 16 + 32 - 10)  # the biases: 16 hidden units, 10 classes
    assert not trainer.parameters[left].any()
    assert not torch.equal(trainer.parameters, before)
