"""Vectorised training: P networks side by side on one task, each at the rates of its own schedule.

All networks start from the same weights and see the same batches; only their schedules and initial rates differ. Their
parameters are the rows of one tensor, (P, D), and each product is a batched one.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, one_hot

from metastep.core.policy import apply_action, calibrate, init_hidden, signal_policy, unpack_weights
from metastep.core.signals import SignalState, features, init_signals, layer_features, layer_signals, observe
from metastep.lab.evolution.base_optimizers import Base, make_base_optimizer
from metastep.lab.evolution.networks import Network
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.task_distribution import Examples, TaskSpec

#: No loss counts as more than this, so that a network that is lost does not dominate an average.
WORST_LOSS = 20.0
#: Numbers in a piece: longer ones add up faster, but more is left over behind each bias.
PIECE = 32


def losses(network: Network, parameters: list[Tensor], data: Examples, examples: tuple[Tensor, ...]) -> Tensor:
    """The mean loss of each network, (P,): cross-entropy in nats, or the mean squared error."""
    if data.kind == "tokens":
        inputs, targets = examples[0][:, :-1], examples[0][:, 1:]
    else:
        inputs, targets = examples
    outputs = network.forward(parameters, inputs)
    if data.kind == "numbers":
        return (outputs - targets).square().flatten(1).mean(1)
    flat, count = outputs.reshape(-1, data.outputs), len(outputs)
    return cross_entropy(flat, targets.flatten().repeat(count), reduction="none").view(count, -1).mean(1)


class Packing:
    """How the parameters of networks are packed into rows, (P, D), so that those of a layer can be summed and moved.

    A layer is a parameter tensor, as in ``SignalSchedule(scope="layer")``. Each of the L layers begins at a multiple of
    the piece's length; what is left of its last piece stays 0. Sums over layers are then sums over C pieces, all of one
    length, and a small product with the table that says to which layer a piece belongs: a handful of operations,
    however many layers there are.

    Args:
        network: whose parameters.
        piece: numbers in a piece; 1 leaves nothing over.
        like: of the dtype and on the device of the parameters.

    Attributes:
        layers: L.
        width: D, what is left over included.
    """

    def __init__(self, network: Network, piece: int, like: Tensor) -> None:
        self.network, self.piece, self.layers = network, piece, len(network.weights)
        pieces = [-(-weight.size // piece) for weight in network.weights]
        self.width = sum(pieces) * piece
        self._left = [count * piece - weight.size for count, weight in zip(pieces, network.weights, strict=True)]
        self._pieces, self._zeros = pieces, like.new_zeros(0)

    @cached_property
    def _of(self) -> Tensor:
        """The layer of each piece, (C,)."""
        return torch.arange(self.layers).repeat_interleave(torch.tensor(self._pieces)).to(self._zeros.device)

    @cached_property
    def _table(self) -> Tensor:
        """1 where a piece is of a layer, (C, L)."""
        return one_hot(self._of, self.layers).to(self._zeros)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of (P, D) as the parameters, each (P, *shape)."""
        return self.network.split(flat, self.piece)

    def join(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write the parameters, or their gradients, into rows, (P, D), with 0 in what is left over."""
        if len(self._zeros) != len(out):
            self._zeros = out.new_zeros(len(out), self.piece)
        flat = []
        for part, left in zip(parts, self._left, strict=True):
            flat.append(part.flatten(1))
            if left:
                flat.append(self._zeros[:, :left])
        return torch.cat(flat, 1, out=out)

    def sums(self, products: Tensor, *rows: Tensor) -> Tensor:
        """Return sums over layers, (1 + rows, P, L): of the products, (P, D), and of the squares of each of the rows.

        What is not finite in a layer makes its sum NaN, and no other.
        """
        cut = (len(products), -1, self.piece)
        squares = [vector_norm(row.view(cut), dim=-1) ** 2 for row in rows]
        pieces = torch.stack((products.view(cut).sum(-1), *squares))
        finite = pieces.nan_to_num(0, 0, 0)
        spoiled = (finite != pieces).to(pieces)  # counted apart, because 0 times NaN would spread it to all layers
        return torch.where(spoiled @ self._table > 0, torch.nan, finite @ self._table)

    def of_pieces(self, values: Tensor) -> Tensor:
        """The values of layers, (P, L), for each piece, (P, C)."""
        return values.index_select(1, self._of)

    def of_parameters(self, values: Tensor) -> Tensor:
        """The values of layers, (P, L), for each parameter, (P, D)."""
        return self.of_pieces(values).repeat_interleave(self.piece, 1)


class VectorisedTrainer:
    """P networks in training on one task, in one batched pass a step. Nothing is read back from the device in a step.

    A policy of scope "layer" sets a rate for each of L parameter tensors: what has a number for each network, (P,),
    then has one for each of its layers, (P, L).

    Args:
        spec: the task.
        base: "sgd" or "adamw".
        policy: what the schedules are made of.
        rates: initial rate of each network, (P,).
        horizon_known: whether the policies may know T.
        loss_known: whether they may see the loss.
        device: where to train.
        dtype: of all numbers.

    Attributes:
        parameters: of all networks, (P, D), as :attr:`packing` says.
        packing: where in a row each parameter is.
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
        policy.check_scope()
        self.spec, self.policy, self.data = spec, policy, spec.load()
        self.network = spec.network(self.data)
        self.known = horizon_known, loss_known
        self._generator = torch.Generator().manual_seed(spec.seed)
        self.rates = rates.to(device, dtype)
        self.layered = policy.scope == "layer"
        self.packing = Packing(self.network, PIECE if self.layered else 1, self.rates)
        start = self.network.split(self.network.init(self._generator)[None].to(device, dtype))
        self.parameters = self.packing.join(start, self.rates.new_empty(1, self.packing.width)).repeat(len(rates), 1)
        self.optimizer = make_base_optimizer(
            base, self.parameters, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
        self._train = tuple(part.to(device) for part in self._training_examples())
        self.validation = tuple(part.to(device) for part in self._scaled(self.data.valid))
        if dtype == torch.float64:
            self._train, self.validation = (
                tuple(p.double() if p.is_floating_point() else p for p in part)
                for part in (self._train, self.validation)
            )
        shape: tuple[int, ...] = (len(rates), self.packing.layers) if self.layered else (len(rates),)
        self.observed = init_signals((len(rates), 1 + shape[1]) if self.layered else shape, dtype, device)
        self.log_multiplier = self.rates.new_full(shape, policy.bounds.start)
        self.hidden = init_hidden(shape, policy.hidden, policy.recurrent, self.rates)
        self.displacement_rate = self.rates.new_zeros(shape)
        own = [policy.signals.index(name) for name in layer_signals(policy.signals)]
        self._own = torch.tensor(own, dtype=torch.int64, device=device)  # of a layer's own signals among all
        self.steps = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._buffers = torch.empty_like(self.parameters), torch.empty_like(self.parameters)
        self._leaves = [part.requires_grad_() for part in self.packing.split(self.parameters.detach())]

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
            The mean of each network's training loss over the steps, (P,), each loss at most :data:`WORST_LOSS`.
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
            self.packing.join(found, gradient)
            loss = loss.detach()
            rate = self.rate(policy, loss, gradient, torch.mul(gradient, self.optimizer.direction, out=products))
            taken = 1 - self._of_network(self.observed.skipped)
            applied = self.packing.of_pieces(rate) if self.layered else rate
            self.optimizer.step(self.parameters, gradient.nan_to_num_(0, 0, 0), applied, taken.flatten())
            self.displacement_rate = rate * taken
            self.steps += 1
        return loss

    def rate(self, policy: dict[str, Tensor], loss: Tensor, gradient: Tensor, products: Tensor) -> Tensor:
        """Observe a step's numbers and return its rates, (P,) or (P, L).

        Args:
            policy: the weights, of :meth:`unpack`.
            loss: of each network, (P,).
            gradient: (P, D).
            products: of each gradient and the last direction, number by number, (P, D).
        """
        bounds, (horizon_known, loss_known), total = self.policy.bounds, self.known, self.spec.steps
        measured = self._measure_layers(gradient, products) if self.layered else self._measure(gradient, products)
        if self.layered:  # layers have no loss: one that is always 1 enters none of their signals, and divides by no 0
            loss = torch.cat((loss[:, None], torch.ones_like(self.log_multiplier)), 1)
        self.observed = observe(self.observed, loss if loss_known else None, *measured)
        update, first = self._of_network(self.observed.update), self._of_network(self.observed.first_update)
        start = calibrate(self.log_multiplier, update, first, total, horizon_known, bounds)
        self.log_multiplier = self.choose(policy, start)
        return self._each(self.rates) * self.log_multiplier.exp()

    def choose(self, policy: dict[str, Tensor], start: Tensor) -> Tensor:
        """Return the log-multiplier of this step from that of the one before, (P,) or (P, L)."""
        (horizon_known, loss_known), total = self.known, self.spec.steps
        at = torch.cat((start.mean(1, keepdim=True), start), 1) if self.layered else start
        seen = features(self.observed, at, self.steps, total, self.policy.signals, horizon_known, loss_known)
        if self.layered:
            seen = layer_features(seen[:, 0], seen[:, 1:].index_select(-1, self._own))
        action, self.hidden = signal_policy(policy, seen, self.hidden)
        backoff = self._of_network(self.observed.backoff)
        return apply_action(start, action, backoff, total, horizon_known, self.policy.bounds, step=self.steps)

    def _measure(self, gradient: Tensor, products: Tensor) -> tuple[Tensor, ...]:
        """<g, u>, |g|^2, |u|^2 and |theta|^2 of each network, (P,)."""
        size = self.displacement_rate
        return (
            size * products.sum(1),
            vector_norm(gradient, dim=1) ** 2,
            (size * vector_norm(self.optimizer.direction, dim=1)) ** 2,
            vector_norm(self.parameters, dim=1) ** 2,
        )

    def _measure_layers(self, gradient: Tensor, products: Tensor) -> tuple[Tensor, ...]:
        """The same of each network and of its layers, (P, 1 + L)."""
        size = self.displacement_rate
        along, grad_sq, direction_sq, param_sq = self.packing.sums(
            products, gradient, self.optimizer.direction, self.parameters
        )
        layers = torch.stack((size * along, grad_sq, size**2 * direction_sq, param_sq))
        return torch.cat((layers.sum(-1, keepdim=True), layers), -1).unbind()

    def _each(self, values: Tensor) -> Tensor:
        """(P, ...) so that it broadcasts over layers, if there are any."""
        return values.unsqueeze(1) if self.layered else values

    def _of_network(self, observed: Tensor) -> Tensor:
        """(P,), or (P, 1) of (P, 1 + L)."""
        return observed[:, :1] if self.layered else observed

    @torch.no_grad()
    def validate(self) -> Tensor:
        """The validation loss of each network, (P,), at most :data:`WORST_LOSS`."""
        leaves = [leaf.detach() for leaf in self._leaves]
        return bounded(losses(self.network, leaves, self.data, self.validation))

    # ---- data

    def _training_examples(self) -> tuple[Tensor, ...]:
        kept = tuple(part[: self.spec.train_size] for part in self.data.train)
        if self.data.kind == "tokens":
            return kept
        inputs, targets = self._scaled(kept)
        if self.data.kind == "classes" and self.spec.label_noise:
            wrong = torch.rand(len(targets), generator=self._generator) < self.spec.label_noise
            drawn = torch.randint(self.data.outputs, targets.shape, generator=self._generator)
            targets = torch.where(wrong, drawn, targets)
        return inputs, targets

    def _scaled(self, examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.data.kind == "tokens":
            return examples
        return examples[0] * self.spec.input_scale, *examples[1:]

    def next_batch(self) -> tuple[Tensor, ...]:
        """The next examples, the same for all networks."""
        size = min(self.spec.batch_size, len(self._train[0]))
        if len(self._order) < size:
            self._order = torch.randperm(len(self._train[0]), generator=self._generator)
        rows, self._order = self._order[:size], self._order[size:]
        return tuple(part[rows.to(part.device)] for part in self._train)

    # ---- resume

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training, as tensors and plain values."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer.state(),
            "signals": self.observed.packed(),
            "log_multiplier": self.log_multiplier,
            "hidden": self.hidden,
            "displacement_rate": self.displacement_rate,
            "steps": self.steps,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, in a trainer made in the same way."""
        like = self.parameters
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
            for mine, saved in zip(self.optimizer.state(), state["optimizer"], strict=True):
                mine.copy_(saved)
        self.observed = SignalState.unpacked(state["signals"].to(like))
        self.log_multiplier = state["log_multiplier"].to(like)
        self.hidden = state["hidden"].to(like)
        self.displacement_rate = state["displacement_rate"].to(like)
        self.steps = state["steps"]
        self._order = state["order"]
        self._generator.set_state(state["generator"])


def bounded(loss: Tensor) -> Tensor:
    """Losses without what is not finite or out of all bounds."""
    return loss.nan_to_num(WORST_LOSS, WORST_LOSS, WORST_LOSS).clamp(max=WORST_LOSS)
