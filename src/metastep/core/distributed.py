"""All-reduce, broadcast and sharding: the only file that speaks ``torch.distributed``.

Ranks exchange a handful of floats, packed into one message; never a gradient. Without a process group, or in one of a
single rank, nothing is sent and tensors come back as they are.

A tensor is *whole* on every rank (one process, DDP) or *sharded* (a DTensor: FSDP2, tensor parallel), when a rank holds
a part of it, which may be empty. Sums over a sharded tensor are taken over the part that is here, times the number of
parts; the mean over all ranks is then the sum over the tensor, however often each part is repeated among them.
"""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Ranks that take part: those of a process group, all (None), or this one alone (False).
Ranks: TypeAlias = "dist.ProcessGroup | bool | None"


# ---- ranks


def check_ranks(name: str, ranks: object) -> None:
    """Raise a ValueError unless it is a process group, None or False."""
    if ranks is None or ranks is False or (dist.is_available() and isinstance(ranks, dist.ProcessGroup)):
        return
    raise ValueError(
        f"{name} must be a torch.distributed process group, None for all ranks or False for this one alone, "
        f"got {ranks!r}; of a device mesh, pass mesh.get_group()."
    )


def rank_count(ranks: Ranks = None) -> int:
    """The number of ranks that take part; 1 without a process group."""
    if ranks is False or (ranks is None and _separate) or not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(_group(ranks))


def all_ranks() -> Ranks:
    """The process group of all ranks by its name, which :func:`separate_ranks` does not change; False without one."""
    world: dist.ProcessGroup | None = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    return False if world is None else world


#: Whether ``None`` means this rank alone.
_separate = False


@contextmanager
def separate_ranks() -> Iterator[None]:
    """Within, each rank does a work of its own: ``None`` means this rank alone, a named process group what it is."""
    global _separate
    before, _separate = _separate, True
    try:
        yield
    finally:
        _separate = before


def _group(ranks: Ranks) -> dist.ProcessGroup | None:
    assert not isinstance(ranks, bool)
    return ranks


# ---- all-reduce and broadcast


def mean_over_ranks(values: Tensor, ranks: Ranks = None, device: torch.device | None = None) -> Tensor:
    """The elementwise mean over ranks, the same on each to the last bit; see :func:`sum_over_ranks`."""
    count = rank_count(ranks)
    return values if count == 1 else sum_over_ranks(values, ranks, device) / count


def sum_over_ranks(values: Tensor, ranks: Ranks = None, device: torch.device | None = None) -> Tensor:
    """The elementwise sum over ranks, the same on each to the last bit, in one all-reduce of ``values``' size.

    Args:
        values: of the same shape and dtype on every rank.
        ranks: who takes part; all of them must call.
        device: where the message is sent from, of the same kind on every rank; default: that of the values. A
            process group that cannot send from there sends from the device that it has.

    Returns:
        A new tensor on that device; ``values`` itself where there is nobody else.
    """
    if rank_count(ranks) == 1:
        return values
    group = _group(ranks)
    message = values.to(_sender(values.device if device is None else device, group), copy=True).contiguous()
    dist.all_reduce(message, group=group)
    return message


def broadcast_tensors(tensors: Sequence[Tensor], ranks: Ranks = None) -> None:
    """Broadcast rank 0's values of these tensors, in place, in one message for each dtype and device."""
    if rank_count(ranks) == 1:
        return
    group = _group(ranks)
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for (_, device), alike in kinds.items():
        message = torch.cat([tensor.reshape(-1) for tensor in alike]).to(_sender(device, group))
        dist.broadcast(message, group=group, group_src=0)
        for tensor, part in zip(alike, torch.split(message, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))


def _sender(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """The device itself if the group can send from it, otherwise the one that it can."""
    able = (dist.group.WORLD if group is None else group)._device_types  # type: ignore[union-attr]
    if any(kind.type == device.type for kind in able) or not able:
        return device
    kind = able[0].type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())


# ---- sharded tensors


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor."""
    known = None if type(tensor) in (Tensor, nn.Parameter) else sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)  # half a second to import where nobody has


def local(tensor: Tensor) -> Tensor:
    """The part that is here, sharing its memory: of a whole tensor all of it."""
    if not is_sharded(tensor):
        return tensor
    found: Any = tensor
    part: Tensor = found._local_tensor if not torch.is_grad_enabled() else found.to_local()
    return part


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """True if one of these is a DTensor."""
    return any(map(is_sharded, tensors))


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor, the part that is here, sharing its memory and without a graph."""
    return [local(tensor.detach()) for tensor in tensors]


def local_copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor, a copy of the part that is here."""
    return [local(tensor.detach()).clone() for tensor in tensors]


def local_gradient(parameter: Tensor) -> Tensor | None:
    """The part of ``grad`` that is here, cut as the parameter is."""
    gradient: Any = parameter.grad
    if gradient is None or not is_sharded(parameter):
        return None if gradient is None else local(gradient)
    placements = parameter.placements  # type: ignore[attr-defined]
    if is_sharded(gradient) and gradient.placements != placements:  # tensor parallel may leave sums unfinished
        gradient = gradient.redistribute(placements=placements)
    return local(gradient)


def part_count(tensor: Tensor) -> int:
    """Into how many parts the tensor is cut; 1 if it is whole."""
    if not is_sharded(tensor):
        return 1
    found: Any = tensor
    sizes = zip(found.device_mesh.shape, found.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_shard())


def local_indices(tensor: Tensor, dim: int) -> range:
    """Which indices along a dimension are here, maybe none.

    Raises:
        ValueError: if the dimension is cut along several dimensions of a device mesh.
    """
    size = tensor.shape[dim]
    if not is_sharded(tensor):
        return range(size)
    found: Any = tensor
    cuts = [place for place, placement in enumerate(found.placements) if placement.is_shard(dim)]
    if not cuts:
        return range(size)
    if len(cuts) > 1:
        raise ValueError(
            f"levels must not have 'unit' where dimension {dim} of a tensor is cut along two dimensions of a device "
            'mesh; use ("global", "layer").'
        )
    ranks, rank = found.device_mesh.shape[cuts[0]], found.device_mesh.get_local_rank(cuts[0])
    chunk = -(-size // ranks)  # as torch.chunk cuts
    return range(min(rank * chunk, size), min((rank + 1) * chunk, size))


def ranks_of(tensors: Iterable[Tensor]) -> Ranks:
    """The ranks over which the sharded tensors among these are spread, False if all of them are whole.

    Those of the device mesh if all are on one of a single dimension, otherwise all ranks.
    """
    sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
    meshes = {tensor.device_mesh for tensor in sharded}
    if not meshes:
        return False
    mesh = meshes.pop()
    group: dist.ProcessGroup | None = mesh.get_group() if not meshes and mesh.ndim == 1 else None
    return group


def is_flattened(tensor: Tensor) -> bool:
    """True for a parameter in the hands of FSDP1, which keeps pieces of one long vector instead of tensors."""
    return bool(getattr(tensor, "_fsdp_flattened", False))


# ---- DistributedDataParallel


def replicated(model: nn.Module) -> nn.Module:
    """The model under DistributedDataParallel; with one rank, the model as it is."""
    return nn.parallel.DistributedDataParallel(model) if rank_count() > 1 else model


def unreplicated(model: nn.Module) -> nn.Module:
    """The model that :func:`replicated` was given."""
    found: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return found


# ---- process group and objects


def init_process_group(backend: str, attempt: str) -> None:
    """Initialise the default process group from the environment that torchrun sets.

    Args:
        backend: "gloo", or "cpu:gloo,cuda:nccl" for a program on CUDA devices.
        attempt: how often torchrun has started them, so that ranks of different attempts do not connect.
    """
    store, rank, count = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=count)


def init_local_process_group(backend: str, store: str, rank: int, count: int) -> None:
    """Initialise the default process group of processes of this machine, which find each other by a file.

    Args:
        backend: as for :func:`init_process_group`.
        store: path of the file; made by the first that comes.
        rank: of this process.
        count: how many processes there are.
    """
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=count)


def destroy_process_group() -> None:
    """Destroy the default process group."""
    dist.destroy_process_group()


def current_rank() -> int:
    """The number of this rank, 0 without a process group."""
    return dist.get_rank() if rank_count() > 1 else 0


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on all ranks: anything that can be pickled."""
    if rank_count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, in order, on rank 0; an empty list elsewhere."""
    if rank_count() == 1:
        return [value]
    values = [None] * rank_count() if current_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def all_gather_object(value: Any) -> list[Any]:
    """The values of all ranks, in order, on all ranks."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all ranks have reached this call."""
    if rank_count() > 1:
        dist.barrier()
