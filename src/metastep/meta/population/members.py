"""The members of a population: P policies, each of which sets the rate of its own copy of one task's network."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from metastep.core.policy import Reach, init_hidden, land, move, signal_policy, unpack_weights, weight_count
from metastep.core.signal_state import SignalState, init_signals
from metastep.core.signals import feature_names, features, observe
from metastep.meta.population.data import Data
from metastep.meta.population.distribution import TaskSpec
from metastep.meta.population.networks import Network
from metastep.meta.population.rules import Base, make_rule

#: No loss counts as more than this, so that a member that is lost does not own an average.
WORST_LOSS = 20.0


class Policy(NamedTuple):
    """What a schedule reads and how it moves: all but its weights."""

    signals: tuple[str, ...]
    hidden: int = 16
    recurrent: bool = False
    reach: Reach = Reach()

    @property
    def features(self) -> int:
        """Inputs of the network."""
        return len(feature_names(self.signals))

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return weight_count(self.features, self.hidden, self.recurrent)


def losses(network: Network, parameters: list[Tensor], data: Data, examples: tuple[Tensor, ...]) -> Tensor:
    """The mean loss of each member, (P,): cross-entropy in nats, or the mean squared error."""
    if data.kind == "tokens":
        inputs, targets = examples[0][:, :-1], examples[0][:, 1:]
    else:
        inputs, targets = examples
    outputs = network.forward(parameters, inputs)
    members = len(outputs)
    if data.kind == "numbers":
        return (outputs - targets).square().flatten(1).mean(1)
    flat = outputs.reshape(-1, data.outputs)
    return cross_entropy(flat, targets.flatten().repeat(members), reduction="none").view(members, -1).mean(1)


class Members:
    """P networks in training on one task, in one batched pass a step.

    All members start from the same weights and see the same batches. Nothing is read back from the device in a step.

    Args:
        spec: the task.
        base: "sgd" or "adamw".
        policy: what the schedules are made of.
        rates: initial rate of each member, (P,).
        horizon_known: whether the policies may know T.
        loss_known: whether they may see the loss.
        device: where to train.
        dtype: of all numbers.

    Attributes:
        parameters: of all members, (P, D).
        validation: the examples to judge by.
        steps: taken so far.
    """

    def __init__(
        self,
        spec: TaskSpec,
        base: Base,
        policy: Policy,
        rates: Tensor,
        *,
        horizon_known: bool = True,
        loss_known: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec, self.policy, self.data = spec, policy, spec.load()
        self.network = spec.network(self.data)
        self.known = horizon_known, loss_known
        self._chance = torch.Generator().manual_seed(spec.seed)
        start = self.network.init(self._chance).to(device, dtype)
        self.parameters = start.repeat(len(rates), 1)
        self.rates = rates.to(device, dtype)
        self.rule = make_rule(base, self.parameters, momentum=spec.momentum, weight_decay=spec.weight_decay)
        self._train = tuple(part.to(device) for part in self._training_examples())
        self.validation = tuple(part.to(device) for part in self._scaled(self.data.valid))
        if dtype == torch.float64:
            self._train, self.validation = (
                tuple(p.double() if p.is_floating_point() else p for p in part)
                for part in (self._train, self.validation)
            )
        self.signals = init_signals((len(rates),), dtype, device)
        self.log_multiplier = torch.full_like(self.rates, policy.reach.start)
        self.hidden = init_hidden((len(rates),), policy.hidden, policy.recurrent, self.rates)
        self.displacement_rate = torch.zeros_like(self.rates)
        self.steps = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._buffers = torch.empty_like(self.parameters), torch.empty_like(self.parameters)
        self._leaves = [part.requires_grad_() for part in self.network.split(self.parameters.detach())]

    @property
    def finished(self) -> bool:
        """Whether all T steps are done."""
        return self.steps >= self.spec.steps

    def advance(self, weights: Tensor, steps: int) -> Tensor:
        """Train for some steps, at most to T, under the policies of these weights, (P, N).

        Returns:
            The mean of each member's training loss over the steps, (P,), each loss at most :data:`WORST_LOSS`.
        """
        parts = unpack_weights(weights, self.policy.features, self.policy.hidden, self.policy.recurrent)
        total = torch.zeros_like(self.rates)
        done = 0
        while done < steps and not self.finished:
            total += bounded(self._step(parts))
            done += 1
        return total / max(done, 1)

    def run(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Train to the end; return the training loss over the last tenth and the validation loss, each (P,)."""
        last = max(1, self.spec.steps // 10)
        self.advance(weights, self.spec.steps - last)
        return self.advance(weights, last), self.validate()

    def _step(self, policy: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            loss = losses(self.network, self._leaves, self.data, self.next_batch())
            found = torch.autograd.grad(loss.sum(), self._leaves)
        with torch.no_grad():
            gradient, products = self._buffers  # kept: fresh memory of this size costs more than what is done with it
            torch.cat([part.flatten(1) for part in found], 1, out=gradient)
            loss = loss.detach()
            along = torch.mul(gradient, self.rule.direction, out=products).sum(1)
            rate = self.rate(policy, loss, gradient, along)
            taken = 1 - self.signals.braked
            self.rule.step(self.parameters, gradient.nan_to_num_(0, 0, 0), rate, taken)
            self.displacement_rate = rate * taken
            self.steps += 1
        return loss

    def rate(self, policy: dict[str, Tensor], loss: Tensor, gradient: Tensor, along: Tensor) -> Tensor:
        """Observe a step's numbers and return its rates, (P,).

        Args:
            policy: the weights, by name.
            loss: of each member, (P,).
            gradient: (P, D).
            along: the inner product of each gradient and the last direction, (P,).
        """
        reach, (horizon_known, loss_known), total = self.policy.reach, self.known, self.spec.steps
        direction, size = self.rule.direction, self.displacement_rate
        self.signals = observe(
            self.signals,
            loss if loss_known else None,
            size * along,
            vector_norm(gradient, dim=1) ** 2,
            (size * vector_norm(direction, dim=1)) ** 2,
            vector_norm(self.parameters, dim=1) ** 2,
        )
        start = land(self.log_multiplier, self.signals.update, self.signals.landing, total, horizon_known, reach)
        self.log_multiplier = self.choose(policy, start)
        return self.rates * self.log_multiplier.exp()

    def choose(self, policy: dict[str, Tensor], start: Tensor) -> Tensor:
        """Return the log-multiplier of this step from that of the one before, (P,)."""
        (horizon_known, loss_known), total = self.known, self.spec.steps
        seen = features(self.signals, start, self.steps, total, self.policy.signals, horizon_known, loss_known)
        drive, self.hidden = signal_policy(policy, seen, self.hidden)
        return move(start, drive, self.signals.cut, total, horizon_known, self.policy.reach, step=self.steps)

    @torch.no_grad()
    def validate(self) -> Tensor:
        """The validation loss of each member, (P,), at most :data:`WORST_LOSS`."""
        leaves = [leaf.detach() for leaf in self._leaves]
        return bounded(losses(self.network, leaves, self.data, self.validation))

    # ---- data

    def _training_examples(self) -> tuple[Tensor, ...]:
        kept = tuple(part[: self.spec.train_size] for part in self.data.train)
        if self.data.kind == "tokens":
            return kept
        inputs, targets = self._scaled(kept)
        if self.data.kind == "classes" and self.spec.label_noise:
            wrong = torch.rand(len(targets), generator=self._chance) < self.spec.label_noise
            drawn = torch.randint(self.data.outputs, targets.shape, generator=self._chance)
            targets = torch.where(wrong, drawn, targets)
        return inputs, targets

    def _scaled(self, examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.data.kind == "tokens":
            return examples
        return examples[0] * self.spec.input_scale, *examples[1:]

    def next_batch(self) -> tuple[Tensor, ...]:
        """The next examples, the same for all members."""
        size = min(self.spec.batch_size, len(self._train[0]))
        if len(self._order) < size:
            self._order = torch.randperm(len(self._train[0]), generator=self._chance)
        rows, self._order = self._order[:size], self._order[size:]
        return tuple(part[rows.to(part.device)] for part in self._train)

    # ---- resume

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training, as tensors and plain values."""
        return {
            "parameters": self.parameters,
            "rule": self.rule.state(),
            "signals": self.signals.packed(),
            "log_multiplier": self.log_multiplier,
            "hidden": self.hidden,
            "displacement_rate": self.displacement_rate,
            "steps": self.steps,
            "order": self._order.clone(),
            "chance": self._chance.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in members made in the same way."""
        like = self.parameters
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
            for mine, saved in zip(self.rule.state(), state["rule"], strict=True):
                mine.copy_(saved)
        self.signals = SignalState.unpacked(state["signals"].to(like))
        self.log_multiplier = state["log_multiplier"].to(like)
        self.hidden = state["hidden"].to(like)
        self.displacement_rate = state["displacement_rate"].to(like)
        self.steps = state["steps"]
        self._order = state["order"]
        self._chance.set_state(state["chance"])


def bounded(loss: Tensor) -> Tensor:
    """Losses without what is not finite or out of all bounds."""
    return loss.nan_to_num(WORST_LOSS, WORST_LOSS, WORST_LOSS).clamp(max=WORST_LOSS)
