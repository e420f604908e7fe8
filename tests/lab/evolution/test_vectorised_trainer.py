"""A population in training: what its members share, what they do not, and that it is one with the schedule in use."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import metastep as ms
from metastep.core.signals import SIGNALS
from metastep.lab.evolution.data import MADE, load
from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.members import WORST_LOSS, Members
from metastep.lab.evolution.networks import MLP
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base
from metastep.schedules.signal import Scope


def weights_of(policy: Policy, members: int, spread: float = 0.3) -> torch.Tensor:
    """Random weights, one row a member."""
    return torch.randn(members, policy.size, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_members_train_as_each_would_alone(scope: Scope, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope)
    weights, rates = weights_of(policy, 3).double(), torch.tensor([0.01, 0.1, 1.0])
    together = Members(spec, "sgd", policy, rates, dtype=torch.float64)
    trained, valid = together.run(weights)
    for member in range(3):
        row = slice(member, member + 1)
        alone = Members(spec, "sgd", policy, rates[row], dtype=torch.float64)
        alone_trained, alone_valid = alone.run(weights[row])
        torch.testing.assert_close(alone.parameters, together.parameters[row], rtol=0, atol=1e-9)
        torch.testing.assert_close(torch.cat((alone_trained, alone_valid)), torch.stack((trained, valid))[:, member])


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
    ids=["sound", "braked", "braked, no horizon", "braked, no loss"],
)
@pytest.mark.parametrize(("base", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)])
def test_a_member_gets_the_rates_that_learned_lr_would_set(
    base: Base, momentum: float, known: tuple[bool, bool], factors: dict[int, float], scope: Scope,
    policy: Policy, spec: TaskSpec,
) -> None:  # fmt: skip
    """Training and use share one definition: the same task in a torch loop, with SignalSchedule.

    One gradient is far out of range, one not a number, both in one parameter tensor: the others go on as if alone.
    """
    steps = 30
    spec = dataclasses.replace(spec, momentum=momentum, weight_decay=0.01, steps=steps)
    reach = policy.reach._replace(climb=6.0, fall=6.0)  # within its bounds to the end
    policy = policy._replace(scope=scope, signals=SIGNALS, reach=reach)
    horizon_known, loss_known = known
    weights = weights_of(policy, 1).double()
    options = {"horizon_known": horizon_known, "loss_known": loss_known, "dtype": torch.float64}
    members, twin = (Members(spec, base, policy, torch.tensor([0.02]), **options) for _ in range(2))
    for one in (members, twin):
        one.network.__class__ = Spoiled
        one.network.spoil(factors)
    parameters = [nn.Parameter(part[0].clone()) for part in twin.layout.split(twin.parameters)]
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    extra = {"momentum": momentum} if base == "sgd" else {}
    optimizer = kinds[base](parameters, lr=0.02, weight_decay=0.01, **extra)
    schedule = ms.SignalSchedule(policy.signals, policy.hidden, scope=scope, reach=policy.reach).double()
    schedule.load_flat(weights[0])
    lr = ms.LearnedLR(optimizer, schedule, total_steps=steps if horizon_known else None)
    for _ in range(steps):
        inputs, targets = twin.next_batch()
        outputs = twin.network.forward([p[None] for p in parameters], inputs)[0]
        loss = nn.functional.cross_entropy(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if loss_known:
            lr.observe(loss)
        optimizer.step()
        members.advance(weights, 1)
        mine = members.displacement_rate.flatten().tolist()
        assert lr.get_last_lr() == pytest.approx(mine, rel=1e-5)
    assert lr.brakes == members.signals.brakes[0] == len(factors)
    assert len(set(mine)) == members.log_multiplier.numel()
    for mine, part in zip(members.layout.split(members.parameters), parameters, strict=True):
        torch.testing.assert_close(part.detach(), mine[0], rtol=1e-5, atol=1e-7)


def test_with_a_landing_the_initial_rate_decides_nothing_but_the_first_step(policy: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=60, momentum=0.0)
    policy = policy._replace(reach=policy.reach._replace(climb=5.0, fall=5.0))
    rates = torch.tensor([1e-6, 1e-4, 1e-3])
    members = Members(spec, "sgd", policy, rates, dtype=torch.float64)
    members.run(weights_of(policy, 1).double().expand(3, -1))
    used = members.rates * members.log_multiplier.exp()
    assert used.max() / used.min() < 1.02
    still = Members(spec, "sgd", policy._replace(reach=policy.reach._replace(landing=0.0)), rates, dtype=torch.float64)
    still.run(weights_of(policy, 1).double().expand(3, -1))
    used = still.rates * still.log_multiplier.exp()
    assert used.max() / used.min() > 100


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_a_member_that_is_lost_leaves_the_others_alone(scope: Scope, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope)
    weights = weights_of(policy, 2)
    sound, with_lost = (Members(spec, "sgd", policy, torch.full((2,), 0.1)) for _ in range(2))
    with torch.no_grad():
        with_lost.parameters[0] = torch.inf
    _, expected = sound.run(weights)
    training, validation = with_lost.run(weights)
    assert validation[0] == training[0] == WORST_LOSS
    assert torch.equal(validation[1], expected[1])
    assert with_lost.signals.brakes[0] == spec.steps


@pytest.mark.parametrize(("scope", "recurrent"), [("network", False), ("layer", False), ("layer", True)])
def test_training_stops_and_goes_on_bit_for_bit(scope: Scope, recurrent: bool, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope=scope, recurrent=recurrent)
    weights, rates = weights_of(policy, 2), torch.full((2,), 0.1)
    undisturbed, stopped, resumed = (Members(spec, "adamw", policy, rates) for _ in range(3))
    undisturbed.advance(weights, 12)
    stopped.advance(weights, 5)
    resumed.load_state_dict(stopped.state_dict())
    resumed.advance(weights, 7)
    assert torch.equal(undisturbed.parameters, resumed.parameters)
    assert torch.equal(undisturbed.log_multiplier, resumed.log_multiplier)
    assert undisturbed.log_multiplier.unique().numel() == undisturbed.log_multiplier.numel()


def test_a_scope_that_cannot_be_is_refused(policy: Policy, spec: TaskSpec) -> None:
    with pytest.raises(ValueError, match=r"scope must be 'network' or 'layer', got 'tensor'"):
        Members(spec, "sgd", policy._replace(scope="tensor"), torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"signals must name one of alignment, .* at least, got loss;"):
        Members(spec, "sgd", policy._replace(scope="layer", signals=("loss",)), torch.ones(1))


@pytest.mark.parametrize("name", [*MADE, "table:diabetes", "images:digits"])
def test_data_are_the_same_for_the_same_seed_and_say_what_they_are(name: str) -> None:
    data, again = load(name, 5), load(name, 5)
    assert all(map(torch.equal, data.train, again.train))
    inputs = data.train[0]
    if data.kind == "tokens":
        assert 0 <= int(inputs.min()) <= int(inputs.max()) < data.outputs
    elif data.kind == "classes":
        assert int(data.train[1].max()) < data.outputs
    else:
        assert data.train[1].shape == (len(inputs), data.outputs)
        assert abs(float(data.train[1].mean())) < 0.2
    with pytest.raises(ValueError, match=r"name must be table:NAME.* got 'mnist'"):
        load("mnist", 0)
