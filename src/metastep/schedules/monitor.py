"""What a schedule observes of an optimizer besides the loss: the gradient beside the last displacement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import (
    is_flattened,
    is_sharded,
    local,
    local_gradient,
    mean_over_ranks,
    part_count,
    ranks_of,
)

#: No single inner product is longer than BLAS can count.
_LONGEST = 2**30


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

    def __post_init__(self) -> None:
        self.sizes_there = torch.tensor(self.sizes, device=self.before.device)


class Watch:
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
        self._measured: list[nn.Parameter] = []
        self._buckets: list[_Bucket] = []
        self._order: Tensor | None = None  # from the buckets' order to the parameters', where they differ
        self._saved: list[Tensor] | None = None  # of a state_dict, until the parameters are known

    @torch.no_grad()
    def measure(self) -> tuple[Tensor, Tensor | None]:
        """Return the four numbers of the network, (4,), and those of each parameter, (L, 4), or None.

        They are float64 (float32 on mps), on the device of the first parameter. Before the first measurement, and after
        parameters have joined, u is 0.
        """
        parameters = self._parameters()
        if list(map(id, parameters)) != list(map(id, self._measured)):
            self._adopt(parameters)
        if not parameters:
            return torch.zeros(4, dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64) if self.layers else None
        rows = [self._sums(bucket) for bucket in self._buckets]
        home = rows[0].device
        if not self.layers:
            network = torch.stack([row.to(home) for row in rows]).sum(0)
            return mean_over_ranks(network, ranks_of(parameters)), None
        layers = torch.cat([row.to(home) for row in rows])
        if self._order is not None:
            layers = layers[self._order]
        layers = mean_over_ranks(layers, ranks_of(parameters))
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
        self._measured = list(parameters)
        self._buckets = []
        for (_, _, parts), rows in kinds.items():
            members = [parameters[place] for place in rows]
            sizes = [_flat(local(member)).numel() for member in members]
            self._buckets.append(_Bucket(members, rows, _joined(map(local, members)), parts, sizes))
        order = [place for bucket in self._buckets for place in bucket.rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        self._order = torch.tensor(back, device=self._buckets[0].before.device) if back != sorted(back) else None
        saved, self._saved = self._saved, None
        if saved is not None and [s.shape for s in saved] == [b.before.shape for b in self._buckets]:
            for bucket, before in zip(self._buckets, saved, strict=True):
                bucket.before.copy_(before)

    def _sums(self, bucket: _Bucket) -> Tensor:
        """The four sums of a bucket: (4,), or (members, 4)."""
        now = _joined(map(local, bucket.parameters))
        gradient = _joined(map(_gradient, bucket.parameters))
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


def _joined(tensors: Any) -> Tensor:
    return torch.cat([_flat(tensor) for tensor in tensors])


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = local_gradient(parameter)
    if gradient is None:
        return torch.zeros_like(local(parameter))
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
