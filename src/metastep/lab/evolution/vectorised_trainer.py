"""The members of a population: P policies, each of which sets the rate of its own copy of one task's network."""

from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from metastep.core.policy import init_hidden, land, move, signal_policy, unpack_weights
from metastep.core.signal_state import SignalState, init_signals
from metastep.core.signals import features, layer_features, layer_signals, observe
from metastep.lab.evolution.data import Data
from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.layout import PIECE, Layout
from metastep.lab.evolution.networks import Network
from metastep.lab.evolution.policy import Policy, check_scope
from metastep.lab.evolution.rules import Base, make_rule

#: No loss counts as more than this, so that a member that is lost does not own an average.
WORST_LOSS = 20.0


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

    A policy of scope "layer" sets a rate for each of L parameter tensors: what has a number for each member, (P,), then
    has one for each of its layers, (P, L).

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
        parameters: of all members, (P, D), as :attr:`layout` says.
        layout: where in a row each parameter is.
        observed: what the signals remember, (P,); or (P, 1 + L), of the network and of each layer.
        log_multiplier: m, (P,) or (P, L).
        displacement_rate: of the last step, 0 if it was skipped, (P,) or (P, L).
        validation: the examples to judge by.
        steps: taken so far.

    Raises:
        ValueError: for an unknown scope, or one of layers without a signal that a layer has of its own.
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
        check_scope(policy)
        self.spec, self.policy, self.data = spec, policy, spec.load()
        self.network = spec.network(self.data)
        self.known = horizon_known, loss_known
        self._chance = torch.Generator().manual_seed(spec.seed)
        self.rates = rates.to(device, dtype)
        self.layered = policy.scope == "layer"
        self.layout = Layout(self.network, PIECE if self.layered else 1, self.rates)
        start = self.network.split(self.network.init(self._chance)[None].to(device, dtype))
        self.parameters = self.layout.join(start, self.rates.new_empty(1, self.layout.width)).repeat(len(rates), 1)
        self.rule = make_rule(base, self.parameters, momentum=spec.momentum, weight_decay=spec.weight_decay)
        self._train = tuple(part.to(device) for part in self._training_examples())
        self.validation = tuple(part.to(device) for part in self._scaled(self.data.valid))
        if dtype == torch.float64:
            self._train, self.validation = (
                tuple(p.double() if p.is_floating_point() else p for p in part)
                for part in (self._train, self.validation)
            )
        shape = (len(rates), *((self.layout.layers,) if self.layered else ()))
        self.observed = init_signals((len(rates), 1 + shape[1]) if self.layered else shape, dtype, device)
        self.log_multiplier = self.rates.new_full(shape, policy.reach.start)
        self.hidden = init_hidden(shape, policy.hidden, policy.recurrent, self.rates)
        self.displacement_rate = self.rates.new_zeros(shape)
        places = [policy.signals.index(name) for name in layer_signals(policy.signals)]
        self._own = torch.tensor(places, dtype=torch.int64, device=device)  # of a layer's own signals among all
        self.steps = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._buffers = torch.empty_like(self.parameters), torch.empty_like(self.parameters)
        self._leaves = [part.requires_grad_() for part in self.layout.split(self.parameters.detach())]

    @property
    def finished(self) -> bool:
        """Whether all T steps are done."""
        return self.steps >= self.spec.steps

    @property
    def signals(self) -> SignalState:
        """What the signals of the networks remember, (P,)."""
        return SignalState(*(part[:, 0] for part in self.observed)) if self.layered else self.observed

    def unpack(self, weights: Tensor) -> dict[str, Tensor]:
        """The weights of the policies, (P, N), by name, so that they broadcast over layers."""
        return unpack_weights(self._each(weights), self.policy.features, self.policy.hidden, self.policy.recurrent)

    def advance(self, weights: Tensor, steps: int) -> Tensor:
        """Train for some steps, at most to T, under the policies of these weights, (P, N).

        Returns:
            The mean of each member's training loss over the steps, (P,), each loss at most :data:`WORST_LOSS`.
        """
        parts = self.unpack(weights)
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
            self.layout.join(found, gradient)
            loss = loss.detach()
            rate = self.rate(policy, loss, gradient, torch.mul(gradient, self.rule.direction, out=products))
            taken = 1 - self._of_network(self.observed.braked)
            applied = self.layout.of_pieces(rate) if self.layered else rate
            self.rule.step(self.parameters, gradient.nan_to_num_(0, 0, 0), applied, taken.flatten())
            self.displacement_rate = rate * taken
            self.steps += 1
        return loss

    def rate(self, policy: dict[str, Tensor], loss: Tensor, gradient: Tensor, products: Tensor) -> Tensor:
        """Observe a step's numbers and return its rates, (P,) or (P, L).

        Args:
            policy: the weights, of :meth:`unpack`.
            loss: of each member, (P,).
            gradient: (P, D).
            products: of each gradient and the last direction, number by number, (P, D).
        """
        reach, (horizon_known, loss_known), total = self.policy.reach, self.known, self.spec.steps
        measured = self._measure_layers(gradient, products) if self.layered else self._measure(gradient, products)
        if self.layered:  # layers have no loss: one that is always 1 enters none of their signals, and divides by no 0
            loss = torch.cat((loss[:, None], torch.ones_like(self.log_multiplier)), 1)
        self.observed = observe(self.observed, loss if loss_known else None, *measured)
        update, landing = self._of_network(self.observed.update), self._of_network(self.observed.landing)
        start = land(self.log_multiplier, update, landing, total, horizon_known, reach)
        self.log_multiplier = self.choose(policy, start)
        return self._each(self.rates) * self.log_multiplier.exp()

    def choose(self, policy: dict[str, Tensor], start: Tensor) -> Tensor:
        """Return the log-multiplier of this step from that of the one before, (P,) or (P, L)."""
        (horizon_known, loss_known), total = self.known, self.spec.steps
        at = torch.cat((start.mean(1, keepdim=True), start), 1) if self.layered else start
        seen = features(self.observed, at, self.steps, total, self.policy.signals, horizon_known, loss_known)
        if self.layered:
            seen = layer_features(seen[:, 0], seen[:, 1:].index_select(-1, self._own))
        drive, self.hidden = signal_policy(policy, seen, self.hidden)
        cut = self._of_network(self.observed.cut)
        return move(start, drive, cut, total, horizon_known, self.policy.reach, step=self.steps)

    def _measure(self, gradient: Tensor, products: Tensor) -> tuple[Tensor, ...]:
        """<g, u>, |g|^2, |u|^2 and |theta|^2 of each network, (P,)."""
        size = self.displacement_rate
        return (
            size * products.sum(1),
            vector_norm(gradient, dim=1) ** 2,
            (size * vector_norm(self.rule.direction, dim=1)) ** 2,
            vector_norm(self.parameters, dim=1) ** 2,
        )

    def _measure_layers(self, gradient: Tensor, products: Tensor) -> tuple[Tensor, ...]:
        """The same of each network and of its layers, (P, 1 + L)."""
        size = self.displacement_rate
        along, grad_sq, direction_sq, param_sq = self.layout.sums(
            products, gradient, self.rule.direction, self.parameters
        )
        layers = torch.stack((size * along, grad_sq, size**2 * direction_sq, param_sq))
        return torch.cat((layers.sum(-1, keepdim=True), layers), -1).unbind()

    def _each(self, of_members: Tensor) -> Tensor:
        """(P, ...) so that it broadcasts over layers, if there are any."""
        return of_members.unsqueeze(1) if self.layered else of_members

    def _of_network(self, observed: Tensor) -> Tensor:
        """(P,), or (P, 1) of (P, 1 + L)."""
        return observed[:, :1] if self.layered else observed

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
            "signals": self.observed.packed(),
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
        self.observed = SignalState.unpacked(state["signals"].to(like))
        self.log_multiplier = state["log_multiplier"].to(like)
        self.hidden = state["hidden"].to(like)
        self.displacement_rate = state["displacement_rate"].to(like)
        self.steps = state["steps"]
        self._order = state["order"]
        self._chance.set_state(state["chance"])


def bounded(loss: Tensor) -> Tensor:
    """Losses without what is not finite or out of all bounds."""
    return loss.nan_to_num(WORST_LOSS, WORST_LOSS, WORST_LOSS).clamp(max=WORST_LOSS)
