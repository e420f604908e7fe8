"""What a schedule is given of an optimizer besides the loss; and how a step that it skips becomes an empty one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import (
    Ranks,
    is_flattened,
    is_sharded,
    local,
    local_gradient,
    mean_over_ranks,
    part_count,
    ranks_of,
)
from metastep.schedules.base import Observation, Rate
from metastep.schedules.linearity import check_linear_in_rate

#: No single inner product is longer than BLAS can count.
_LONGEST = 2**30
#: In how many steps at most an optimizer is asked whether it is linear in its rate, while it gives no answer.
_QUESTIONS = 10


@dataclass
class _Bucket:
    """Parameters that are measured together: of one device, dtype and number of parts.

    Attributes:
        rows: their places among all parameters.
        before: their values at the last measurement, one after the other, (elements,).
    """

    parameters: list[nn.Parameter]
    rows: list[int]
    before: Tensor
    parts: int
    sizes: list[int]
    sharded: bool

    def __post_init__(self) -> None:
        self.counts = [parameter.numel() for parameter in self.parameters]
        self.sizes_there = torch.tensor(self.sizes, device=self.before.device)

    def values(self) -> Tensor:
        """What is here of the parameters, one after the other, (elements,)."""
        return _joined(map(local, self.parameters) if self.sharded else self.parameters)

    def is_resized(self) -> bool:
        """Whether a parameter has another number of elements than when it was adopted."""
        return not self.sharded and [parameter.numel() for parameter in self.parameters] != self.counts

    def gradients(self) -> Tensor:
        """The same of their gradients; zeros where there is none."""
        return _joined(_gradient(parameter, self.sharded) for parameter in self.parameters)


class Monitor:
    r"""Measures, just before a step, how the gradient g stands to the last displacement u.

    .. math:: \langle g, u\rangle,\quad |g|^2,\quad |u|^2,\quad |\theta|^2, \qquad u = \theta_\text{before} - \theta

    of all parameters, or of each. Since u is what the optimizer really did, momentum and weight decay included, it is
    the same for every optimizer. One copy of the parameters is kept; the parameters of one device and dtype are
    measured together, as one long vector, with nothing read back from the device.

    Args:
        optimizer: whose parameters, those that require no gradient and have none left out.
        layers: whether each parameter is measured by itself.

    A parameter without a gradient counts as one of gradient 0. Displacements below a quarter of the rounding of the
    parameters' dtype, relative to their size, count as none (bfloat16: 0.2 %, float32: 3e-8). Sums over bfloat16 and
    float16 are taken in float32. Of sharded parameters (DTensor) each rank adds up its part, and the ranks add up 32
    bytes; whole parameters send nothing, because their gradients are the same on every rank.

    Raises:
        ValueError: for FSDP1's flattened parameters, of which a rank has a part and does not know which.
    """

    def __init__(self, optimizer: Optimizer, *, layers: bool) -> None:
        self.optimizer, self.layers = optimizer, layers
        self._questions = _QUESTIONS
        self._rows = len(optimizer.param_groups) if layers else 0
        self._ranks: Ranks = False
        self._measured: list[nn.Parameter] = []
        self._buckets: list[_Bucket] = []
        self._order: Tensor | None = None  # from the buckets' order to the parameters', where they differ
        self._saved: list[Tensor] | None = None  # of a state_dict, until the parameters are known

    def observe(self, loss: float | Tensor | None, broken: int | Tensor, device: torch.device) -> Observation:
        """Measure, and return what the schedule on this device is to read.

        Args:
            loss: the mean of the window's finite losses; None if none was observed.
            broken: how many were not finite; with any, the loss is read as NaN.
            device: where the schedule is.

        Raises:
            NotLinearInRate: in the first steps, of an optimizer that does not move in proportion to its rate.
            ValueError: if there is a rate for each parameter and parameters have joined.
        """
        if self._questions:
            self._questions = 0 if check_linear_in_rate(self.optimizer) else self._questions - 1
        network, layers = self.measure()
        if layers is not None and len(layers) != self._rows:
            raise ValueError(
                f"optimizer must keep the {self._rows} parameters for which there are rates, it has {len(layers)}; "
                "detach the LearnedLR and make a new one after adding a group."
            )
        seen = _loss_on(device, loss, broken)
        return Observation(seen, network.to(device), None if layers is None else layers.to(device))

    @torch.no_grad()
    def measure(self) -> tuple[Tensor, Tensor | None]:
        """Return the four numbers of the network, (4,), and those of each parameter, (L, 4), or None.

        They are float64 (float32 on mps), on the device of the first parameter. Before the first measurement, and after
        parameters have joined or changed their size, u is 0.
        """
        parameters = self._parameters()
        if list(map(id, parameters)) != list(map(id, self._measured)) or any(map(_Bucket.is_resized, self._buckets)):
            self._adopt(parameters)
        if not parameters:
            return torch.zeros(4, dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64) if self.layers else None
        rows = [self._sums(bucket) for bucket in self._buckets]
        home = rows[0].device
        if not self.layers:
            network = torch.stack([row.to(home) for row in rows]).sum(0)
            return network if self._ranks is False else mean_over_ranks(network, self._ranks), None
        layers = torch.cat([row.to(home) for row in rows])
        if self._order is not None:
            layers = layers[self._order]
        if self._ranks is not False:
            layers = mean_over_ranks(layers, self._ranks)
        return layers.sum(0), layers

    def _parameters(self) -> list[nn.Parameter]:
        groups = self.optimizer.param_groups
        everything = [parameter for group in groups for parameter in group["params"]]
        return everything if self.layers else [p for p in everything if p.requires_grad or p.grad is not None]

    def _adopt(self, parameters: Sequence[nn.Parameter]) -> None:
        if any(map(is_flattened, parameters)):
            raise ValueError(
                "optimizer must hold tensors that can be measured, got pieces of one that FSDP1 flattened; shard the "
                "model with torch.distributed.fsdp.fully_shard."
            )
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for place, parameter in enumerate(parameters):
            kinds.setdefault((parameter.device, parameter.dtype, part_count(parameter)), []).append(place)
        self._measured, self._ranks = list(parameters), ranks_of(parameters)
        self._buckets = []
        for (_, _, parts), rows in kinds.items():
            members = [parameters[place] for place in rows]
            sizes = [_flat(local(member)).numel() for member in members]
            sharded = any(map(is_sharded, members))
            self._buckets.append(_Bucket(members, rows, _joined(map(local, members)), parts, sizes, sharded))
        order = [place for bucket in self._buckets for place in bucket.rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        self._order = torch.tensor(back, device=self._buckets[0].before.device) if back != sorted(back) else None
        saved, self._saved = self._saved, None
        if saved is not None and [s.shape for s in saved] == [b.before.shape for b in self._buckets]:
            for bucket, before in zip(self._buckets, saved, strict=True):
                bucket.before.copy_(before)

    def _sums(self, bucket: _Bucket) -> Tensor:
        """The four sums of a bucket: (4,), or (members, 4)."""
        now, gradient = bucket.values(), bucket.gradients()
        wide = torch.promote_types(now.dtype, torch.float32)
        moved = bucket.before.to(wide).sub_(now)  # in place, unless it is widened
        gradient, here = gradient.to(wide), now.to(wide)
        pairs = ((gradient, moved), (gradient, gradient), (moved, moved), (here, here))
        dot, grad_sq, moved_sq, size_sq = (_dots(x, y, bucket if self.layers else None) for x, y in pairs)
        least = torch.finfo(now.dtype).eps / 4  # of a parameter: what is less, rounding decides
        moved_sq = torch.where(moved_sq < least**2 * size_sq, 0, moved_sq)
        sums = torch.stack((dot, grad_sq, moved_sq, size_sq), dim=-1)
        bucket.before.copy_(now)
        scale = getattr(self.optimizer, "grad_scale", None)  # of GradScaler, which leaves the division to fused kernels
        if scale is not None:
            sums = sums / torch.stack((scale, scale * scale, *torch.ones_like(scale).expand(2))).to(sums)
        sums = sums * bucket.parts
        return sums if self.layers else sums[0]

    # ---- checkpoints

    def state_dict(self) -> list[Tensor] | None:
        """The parameters at the last measurement; None if there was none, or if they are sharded."""
        if not self._buckets or any(map(is_sharded, self._measured)):
            return None
        return [bucket.before for bucket in self._buckets]

    def load_state_dict(self, state: list[Tensor] | None) -> None:
        """Go on from :meth:`state_dict`; without it, the first displacement is unknown."""
        self._measured, self._buckets, self._saved = [], [], state


def _flat(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()).reshape(-1) if tensor.is_complex() else tensor.reshape(-1)


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([_flat(tensor) for tensor in tensors])


def _gradient(parameter: nn.Parameter, sharded: bool) -> Tensor:
    gradient = local_gradient(parameter) if sharded else parameter.grad
    if gradient is None:
        return torch.zeros_like(local(parameter) if sharded else parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _dots(x: Tensor, y: Tensor, bucket: _Bucket | None) -> Tensor:
    """The inner products of a bucket's members, or of two whole vectors: (parts,), float64 where there is one."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    if bucket is None:
        return _dot(x, y).to(dtype).reshape(1)
    if x.is_cuda:  # one kernel: a product for each member would be all launches
        return torch.segment_reduce(x * y, "sum", lengths=bucket.sizes_there, unsafe=True).to(dtype)
    parts = zip(torch.split(x, bucket.sizes), torch.split(y, bucket.sizes), strict=True)
    return torch.stack([_dot(a, b).to(dtype) for a, b in parts])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.numel() <= _LONGEST:
        return torch.dot(x, y)
    return torch.stack(
        [torch.dot(a, b) for a, b in zip(torch.split(x, _LONGEST), torch.split(y, _LONGEST), strict=True)]
    ).sum()


def _loss_on(device: torch.device, loss: float | Tensor | None, broken: int | Tensor) -> Tensor | None:
    """A 0-d tensor on the device, made there."""
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        loss = torch.full((), loss, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    if isinstance(broken, Tensor):
        return torch.where(broken > 0, math.nan, loss)
    return torch.full_like(loss, math.nan) if broken else loss


class SkippedStep:
    """Makes a step of an optimizer an empty one, if its schedule says so.

    Where the verdict is known on the host, the parameters have no gradient while the optimizer steps: torch's
    optimizers pass such parameters by, so that neither they nor their momenta, moments or step counts change. Where the
    verdict is on an accelerator, and stays there, the gradients are made zero: momenta and moments then decay by one
    step, the parameters keep still because their rate is 0, and nothing that is not finite gets anywhere.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._skip: bool | Tensor = False
        self._aside: list[tuple[nn.Parameter, Tensor]] = []

    def decide(self, skip: bool | Tensor) -> None:
        """Note the verdict on the step to come."""
        self._skip = skip

    def rate_unless_skipped(self, rate: Rate, before: Rate | None) -> Rate | None:
        """The rate; in a step that is to be skipped, the one before."""
        if isinstance(self._skip, Tensor):
            return (
                rate if before is None else torch.where(self._skip, torch.as_tensor(before).to(self._skip.device), rate)
            )
        return before if self._skip else rate

    def prepare(self) -> None:
        """Call it just before the step."""
        skip = self._skip
        if skip is False:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if isinstance(skip, Tensor):
            with torch.no_grad():
                for parameter in parameters:
                    assert parameter.grad is not None
                    gradient = local(parameter.grad)
                    gradient.masked_fill_(skip.to(gradient.device), 0)
            return
        self._aside = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = None

    def over(self, *_: Any) -> None:
        """Call it after the step, as a hook: gradients that were set aside are back."""
        self._skip = False
        for parameter, gradient in self._aside:
            if parameter.grad is None:
                parameter.grad = gradient
        self._aside = []
