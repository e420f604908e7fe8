r"""How large a rate is: measured on the optimizer itself, before its first step, from a sample of its parameters.

A rate means nothing by itself: 0.001 is large for one optimizer and network, and small for another. What can be
compared is how far a step moves the parameters, relative to their size. The *unit rate* of an optimizer is the rate at
which a settled step is as long as the parameters,

.. math:: \eta_1 = |\theta|\, /\, |u|

with u the direction (displacement over rate) that the optimizer reaches while the gradient stays what it is: its
momentum has then built up. It is found by letting a copy of the optimizer step on a sample of the parameters. Nothing
of the optimizer is touched, the rate that it was made with does not matter, and only ratios of groups' rates do.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from metastep.core.distributed import (
    Ranks,
    is_flattened,
    is_sharded,
    local,
    local_gradient,
    part_count,
    ranks_of,
    sum_over_ranks,
)
from metastep.schedules.compiled_query import SquareOfGradient
from metastep.schedules.linearity import check_linear_in_rate, unhooked_step

#: Optimizers that treat each number by itself: a part of a tensor moves as it does within the tensor.
_ELEMENTWISE = (ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop)
#: Numbers in a sample, the least that are taken of a tensor, and numbers that lie side by side (a cache line).
_SAMPLE, _LEAST, _RUN = 16_384, 64, 16
#: Steps in which a copy settles: momentum of 0.9 is then at its end value to 3e-5. Whole tensors take fewer: 4 %.
_SETTLE, _SETTLE_WHOLE = 100, 30
#: In so many tensors the gradient's length is followed: only its change matters.
_FOLLOWED = 12
#: The gradient's length is averaged with this share of the newest; a length above the average counts at once.
_NEWEST = 0.1
#: A matrix counts at most as so many times the length of a fresh one; one that is shorter by that factor as fresh.
_FRESH = 4.0
#: The rate of a copy: small, for optimizers that bound theirs; a power of two, so that dividing by it is exact.
_TRIAL_RATE = 2.0**-10
#: First steps that are longer than settled ones by more than this are shortened.
_LONGER = 1.05
#: Of options that change how a step is computed and not what it does: plain ones, which take any dtype and device.
_PLAIN = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
#: Vectors of less numbers say nothing; so many values count as constants (a forget gate's bias is another).
_SMALL_VECTOR, _CONSTANTS = 16, 2
#: Numbers spread evenly between -1 and 1 have the mean square 1/3 and the mean 0, with these deviations for one number;
#: so many deviations off are no accident.
_OF_SQUARE, _OF_MEAN, _DEVIATIONS = 0.298, 0.577, 2.5


class CannotCalibrate(ValueError):
    """An optimizer whose unit rate cannot be found."""


class _Runs(NamedTuple):
    """Which numbers of a tensor are in the sample: all, or ``runs`` runs, one every ``stride`` numbers."""

    runs: int
    stride: int
    weight: float

    def of(self, tensor: Tensor) -> Tensor:
        """The numbers: a vector of all, or the runs, (runs, 16)."""
        if self.runs == 0:
            return _flat(tensor)
        if not tensor.is_contiguous() or tensor.is_complex():
            tensor = _flat(tensor)
        return tensor.as_strided((self.runs, _RUN), (self.stride, 1))

    def stretches(self, numbers: int) -> tuple[int, int, int, float]:
        """The same of a tensor of so many numbers: how many stretches, their length, from one to the next, weight."""
        return (self.runs, _RUN, self.stride, self.weight) if self.runs else (1, numbers, 0, 1.0)


class _Sampled(NamedTuple):
    """The sample of gradients on one device.

    Attributes:
        large: parameters of which runs are taken, with their runs; dense, whole and real ones first asked for.
        small: parameters that are taken whole.
        weights: how many numbers each of the sample stands for, those of the large ones first, (N,).
    """

    large: list[tuple[nn.Parameter, _Runs]]
    small: list[nn.Parameter]
    weights: Tensor

    def numbers(self) -> Tensor:
        """The sample of the gradients as they are now, (N,)."""
        vectors = []
        if self.large:
            vectors.append(torch.cat([runs.of(_dense(parameter)) for parameter, runs in self.large]).view(-1))
        if self.small:
            vectors.append(torch.cat([_flat(_dense(parameter)) for parameter in self.small]))
        return torch.cat(vectors) if len(vectors) > 1 else vectors[0]


def _spread(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Some matrices, evenly spread over the network's depth, the last among them; vectors where there is none."""
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2] or parameters
    count = min(_FOLLOWED, len(matrices))
    return [matrices[(place + 1) * len(matrices) // count - 1] for place in range(count)]


def _sampled(live: list[nn.Parameter], layouts: list[_Runs]) -> list[_Sampled]:
    """The samples of these parameters' gradients, one for each device."""
    found = []
    for device in dict.fromkeys(parameter.device for parameter in live):
        here = [(parameter, runs) for parameter, runs in zip(live, layouts, strict=True) if parameter.device == device]
        large = [(parameter, runs) for parameter, runs in here if runs.runs]
        small = [parameter for parameter, runs in here if not runs.runs]
        counts = [*(runs.runs * _RUN for _, runs in large), *(_flat(local(p.detach())).numel() for p in small)]
        weights = [*(runs.weight * part_count(p) for p, runs in large), *(float(part_count(p)) for p in small)]
        dtype = torch.float32 if device.type == "mps" else torch.float64
        each = torch.tensor(weights, dtype=dtype).repeat_interleave(torch.tensor(counts))
        found.append(_Sampled(large, small, each.to(device)))
    return found


def _runs(size: int, share: float) -> _Runs:
    """The runs of a tensor of so many numbers, of which a share of so many is to be in the sample."""
    count = math.ceil(max(share, _LEAST) / _RUN)
    if size <= 2 * count * _RUN:
        return _Runs(0, 0, 1.0)
    stride = (size - _RUN) // count
    stride -= 1 - stride % 2  # odd: it does not fall into step with the rows of a matrix
    return _Runs(count, stride, size / (count * _RUN))


@dataclass
class Calibration:
    """What was measured of one optimizer.

    Attributes:
        unit: the unit rate of the first group; None before it is known.
        decrease: how much the loss falls by in a settled step at the unit rate, to first order.
        follows: whether the direction grows with the gradient (SGD), or is of a size of its own (Adam).
        gradient: the length of the gradient, in the tensors in which it is followed, that belongs to ``unit``.
        recent: its average since.
        trained: whether the network looks as if it had been trained before.
        share: which part of the unit rate the schedule uses; None before it was asked.
        numbers: of all parameters, when it was measured.
        early: by how much each of the first steps is longer than a settled one; empty: none is.
        steps: taken since.
    """

    unit: float | None = None
    decrease: float = 0.0
    follows: bool = False
    gradient: float = 0.0
    recent: float = 0.0
    trained: bool = False
    share: float | None = None
    numbers: int = 0
    early: list[float] = field(default_factory=list)
    steps: int = 0


def can_calibrate(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of torch's that treat each number by itself."""
    return type(optimizer) in _ELEMENTWISE


class UsesUnitRate(Protocol):
    """A schedule whose output multiplies the unit rate."""

    def share(self, found: Calibration, loss: float) -> float:
        """Which part of the unit rate is used."""


class Calibrator:
    """Measures the unit rate of an optimizer, and follows it from step to step where the gradient's length matters.

    Args:
        optimizer: any whose step is rate times a direction.

    Attributes:
        found: what was measured.
        given: the gradient's length in the step to come, from somebody who has it; None: it is read from the sample.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.found = Calibration()
        self.given: float | None = None
        self._layouts: dict[int, tuple[nn.Parameter, int, _Runs]] = {}
        self._groups: list[int] = []
        self._followed: list[nn.Parameter] = []
        self._live: list[tuple[int, int, torch.dtype]] = []
        self._batches: list[_Sampled] = []
        self._square = SquareOfGradient([], [])  # of the same sample
        self._ranks: Ranks = False

    def scale(self, schedule: UsesUnitRate, ratios: Sequence[float], loss: float) -> float:
        """What the schedule's output is multiplied by in the step to come; 0 while no gradient moves anything.

        Args:
            schedule: says which part of the unit rate it uses.
            ratios: of the groups' rates to that of the first.
            loss: the last that was observed, NaN if none was.

        Raises:
            CannotCalibrate: for an optimizer that cannot be copied and tried.
        """
        if self.found.unit is None:
            self._measure(ratios)
        found = self.found
        if found.unit is None:
            return 0.0
        if found.share is None:
            found.share = schedule.share(found, loss)
        scale = found.unit * found.share
        if found.steps < len(found.early):
            scale /= found.early[found.steps]
            found.steps += 1
        return scale * self._correction() if found.follows else scale

    def _correction(self) -> float:
        """How the unit rate follows the gradient: as its length grows, at once; as it falls, slowly and by the root."""
        found, given = self.found, self.given
        length, self.given = self._gradient_length() if given is None else given, None
        if 0 < length < math.inf:
            if found.gradient == 0:
                found.gradient = found.recent = length
            found.recent += _NEWEST * (length - found.recent)
        if found.gradient == 0:
            return 1.0
        ratio = found.gradient / max(length if math.isfinite(length) else 0.0, found.recent)
        return ratio if ratio < 1 else math.sqrt(ratio)

    # ---- the first step

    @torch.no_grad()
    def _measure(self, ratios: Sequence[float]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.found.numbers = sum(parameter.numel() for parameter in parameters)
        whole = type(self.optimizer) not in _ELEMENTWISE
        if whole:
            check_linear_in_rate(self.optimizer)
        sums = torch.zeros(5 + (_SETTLE_WHOLE if whole else _SETTLE), dtype=torch.float64)
        highest = max(ratios, default=0.0)
        for group, ratio in zip(self.optimizer.param_groups, ratios, strict=True):
            if ratio > 0:
                for members in self._members(group, whole):
                    sums += self._try(group, members, ratio, ratio / highest, whole)
        if (ranks := ranks_of(parameters)) is not False:
            sums = sum_over_ranks(sums, ranks, parameters[0].device).cpu()
        size, fresh, doubled, decrease, gradient, *lengths = sums.tolist()
        update = lengths[-1]
        if not (0 < update < math.inf and 0 < gradient < math.inf and math.isfinite(size)):
            return
        unit = math.sqrt((size or fresh) / update)
        early = [math.sqrt(max(length / update, 1.0)) for length in lengths]
        self.found = Calibration(
            unit,
            abs(decrease) * unit,
            follows=doubled > 2 * update,
            trained=looks_trained(parameters),
            numbers=self.found.numbers,
            early=early if max(early) > _LONGER else [],
        )

    def _members(self, group: dict[str, Any], whole: bool) -> list[list[nn.Parameter]]:
        """The parameters of a group that have a gradient: each alone, or those of a device and dtype together."""
        live = [parameter for parameter in group["params"] if parameter.grad is not None and parameter.numel()]
        if whole:
            return [[parameter] for parameter in live]
        kinds: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for parameter in live:
            kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        return list(kinds.values())

    def _try(
        self, group: dict[str, Any], members: list[nn.Parameter], ratio: float, share: float, whole: bool
    ) -> Tensor:
        """Sums over some parameters, float64.

        |theta|^2 of what moves, the same of fresh tensors, |u|^2 of twice the gradient, <g, u>, |g|^2, and |u|^2 of
        each step until u has settled.

        Args:
            group: of the parameters.
            members: some of its parameters.
            ratio: of the group's rate to that of the first.
            share: of its rate in the highest, by which sizes count: what hardly moves has little say.
            whole: whether it is one tensor, tried as it is.
        """
        if whole and is_sharded(members[0]):
            raise CannotCalibrate(self._refusal("its tensors are sharded"))
        runs = [_Runs(0, 0, 1.0) if whole else self._layout(member) for member in members]
        here = [run.of(local(member.detach())) for run, member in zip(runs, members, strict=True)]
        there = [run.of(_dense(member)) for run, member in zip(runs, members, strict=True)]
        counts = [run.weight * part_count(member) for run, member in zip(runs, members, strict=True)]
        start = _wide(torch.cat([part.reshape(-1) for part in here]))
        gradient = torch.cat([part.reshape(-1) for part in there]).to(start)
        weights = torch.cat([start.new_full((part.numel(),), count) for part, count in zip(here, counts, strict=True)])
        if whole:
            start, gradient = start.view(members[0].shape), gradient.view(members[0].shape)
            weights = weights.view(members[0].shape)
        scale = getattr(self.optimizer, "grad_scale", None)  # GradScaler leaves the division to fused optimizers
        if scale is not None:
            gradient = gradient / float(scale)
        size = fresh = 0.0
        for member, part, moving, count in zip(members, here, there, counts, strict=True):
            square = float(part.double().square().sum()) * count
            if bool(moving.any()) and math.isfinite(square):
                size += _square(member, square) * share**2
                fresh += _fresh_square(member) * share**2
        steps = _SETTLE_WHOLE if whole else _SETTLE
        once, lengths = self._settled(group, start, gradient, weights, steps)
        twice, _ = self._settled(group, start, 2 * gradient, weights, steps)
        pairs = ((twice * ratio, twice * ratio), (gradient, once * ratio), (gradient, gradient))
        products = [float((weights * a * b).sum()) for a, b in pairs]
        lengths = [length * ratio**2 for length in lengths]
        return torch.tensor([size, fresh, *products, *lengths], dtype=torch.float64)

    def _settled(
        self, group: dict[str, Any], start: Tensor, gradient: Tensor, weights: Tensor, steps: int
    ) -> tuple[Tensor, list[float]]:
        """Take some steps from one place with a gradient that stays the same.

        Returns:
            The displacement over the rate of the last, and the weighted square of that of each.
        """
        kind = type(self.optimizer)
        piece = nn.Parameter(start.clone())
        signature = inspect.signature(kind.__init__).parameters.values()
        known = {parameter.name for parameter in signature}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            known |= self.optimizer.defaults.keys()
        options = {name: value for name, value in group.items() if name in known and name != "params"}
        options |= {name: value for name, value in _PLAIN.items() if name in options}
        lengths = []
        try:
            with torch.enable_grad():
                copy = kind([piece], **{**options, "lr": _TRIAL_RATE})
                step = unhooked_step(kind)
            for _ in range(steps):
                piece.data.copy_(start)
                piece.grad = gradient.clone()
                step(copy)
                moved = (start - piece.detach()) / _TRIAL_RATE
                lengths.append(float((weights * moved * moved).sum()))
        except Exception as error:
            raise CannotCalibrate(self._refusal(f"a copy of it failed ({error})")) from error
        return moved, lengths

    def _refusal(self, why: str) -> str:
        name = type(self.optimizer).__name__
        return (
            f"the rate of {name} cannot be measured: {why}; name a schedule that multiplies its own rate, such as "
            "metastep.Cosine()."
        )

    # ---- every step, where the direction grows with the gradient

    def _gradient_length(self) -> float:
        """The length of the gradient over the followed tensors, from the sample; of sharded ones over all ranks."""
        if self._groups != [len(group["params"]) for group in self.optimizer.param_groups]:
            self._groups = [len(group["params"]) for group in self.optimizer.param_groups]
            self._followed = _spread([p for group in self.optimizer.param_groups for p in group["params"]])
            self._live, self._square = [], SquareOfGradient([], [])
        square = self._square()
        if square is None:
            self._find_live()
            square = self._square()  # from the first step on, so that a resumed run is the same to the bit
        length = math.sqrt(self._sum_of_squares() if square is None else square)
        scale = getattr(self.optimizer, "grad_scale", None)  # GradScaler leaves the division to fused optimizers
        return length if scale is None else length / float(scale)

    def _find_live(self) -> None:
        """Lay out the sample of the followed tensors that have a gradient, unless it is known."""
        live = [parameter for parameter in self._followed if parameter.grad is not None]
        if (now := [(id(parameter), parameter.numel(), parameter.dtype) for parameter in live]) != self._live:
            self._live, self._ranks = now, ranks_of(live)
            layouts = [self._layout(parameter) for parameter in live]
            self._batches = _sampled(live, layouts)
            idle = [parameter for parameter in self._followed if parameter.grad is None]
            pairs = zip(live, layouts, strict=True) if self._ranks is False else ()
            self._square = SquareOfGradient([(p, *runs.stretches(p.numel())) for p, runs in pairs], idle)

    @torch.no_grad()
    def _sum_of_squares(self) -> float:
        """The weighted sum of the squares in the sample, of all ranks, by torch's operations."""
        square = 0.0 if self._ranks is False else torch.zeros((), dtype=torch.float64)
        for batch in self._batches:
            numbers = _wide(batch.numbers())
            square = square + torch.dot(numbers.mul_(numbers), batch.weights).to(torch.float64, copy=False)
        if isinstance(square, Tensor):
            if self._ranks is not False:
                square = sum_over_ranks(square, self._ranks, self._batches[0].weights.device)
            square = square.item()
        return square

    def _layout(self, parameter: nn.Parameter) -> _Runs:
        known = self._layouts.get(id(parameter))
        if known is None or known[0] is not parameter or known[1] != parameter.numel():
            if is_flattened(parameter):
                raise CannotCalibrate(
                    self._refusal("FSDP1 flattened its tensors (torch.distributed.fsdp.fully_shard does not)")
                )
            size = local(parameter.detach()).numel() * (2 if parameter.is_complex() else 1)
            known = parameter, parameter.numel(), _runs(size, _SAMPLE * size / max(self.found.numbers, size, 1))
            self._layouts[id(parameter)] = known
        return known[2]

    # ---- checkpoints

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": []}  # laid out anew

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self.found)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.found = msgspec.convert(state, Calibration)


@torch.no_grad()
def looks_trained(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether most vectors among these (biases, gains) are no longer as they are when a layer is made.

    Fresh ones are constant, or spread evenly around 0, as torch's linear, convolutional and recurrent layers have them.
    Training makes them neither. Vectors of less than 16 numbers say nothing.
    """
    trained = count = 0
    for parameter in parameters:
        vector = local(parameter.detach())
        if parameter.ndim != 1 or vector.numel() < _SMALL_VECTOR or vector.is_complex():
            continue
        numbers = vector[:_SAMPLE].double()
        largest = float(numbers.abs().max())
        count += 1
        if len(torch.unique(numbers)) > _CONSTANTS and 0 < largest < math.inf:
            scaled = numbers / largest
            accident = _DEVIATIONS / math.sqrt(len(numbers))
            too_peaked = float(scaled.square().mean()) < 1 / 3 - _OF_SQUARE * accident
            trained += too_peaked or abs(float(scaled.mean())) > _OF_MEAN * accident
    return trained > count / 2


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if type(gradient) is not Tensor:
        gradient = local_gradient(parameter)
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def _flat(tensor: Tensor) -> Tensor:
    """As a vector of real numbers."""
    if tensor.ndim == 1 and not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj()).reshape(-1) if tensor.is_complex() else tensor.reshape(-1)


def _wide(tensor: Tensor) -> Tensor:
    """A copy in float64, or float32 where there is none."""
    real = torch.view_as_real(tensor.resolve_conj()).reshape(-1) if tensor.is_complex() else tensor
    return real.to(torch.float32 if real.device.type == "mps" else torch.float64, copy=True)


def _square(parameter: nn.Parameter, square: float) -> float:
    """|theta|^2 of a tensor, as it counts: a matrix close to 0 as a fresh one, and at most four times as long as that.

    Zeros have no size but a first step to take; embeddings of variance 1 are large for a reason of their own.
    """
    if parameter.ndim < 2:
        return square
    fresh = _fresh_square(parameter)
    return fresh if square < fresh / _FRESH**2 else min(square, fresh * _FRESH**2)


def _fresh_square(parameter: nn.Parameter) -> float:
    """|theta|^2 of a fresh tensor of this shape: of variance 1/(3n), with n the greater of its fan-in and fan-out.

    That is how torch's own layers begin, as far as their fan-in is the greater.
    """
    if parameter.ndim < 2:
        return 1 / 3
    numbers = parameter.numel()
    return numbers / (3 * max(numbers / parameter.shape[0], numbers / parameter.shape[1]))
