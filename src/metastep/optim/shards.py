"""Sharded parameters: which rows of a group are here, and how the ranks come to the sums of whole tensors.

The passes run on the parts that are here, as if they were the tensors. Between them the row sums of all groups go out
in one message, and every rank moves the same coarser rates from the same sums; rates of single elements stay where the
elements are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from metastep.core.distributed import (
    Ranks,
    is_flattened,
    is_sharded,
    local_indices,
    mean_over_ranks,
    part_count,
    ranks_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from metastep.core.levels import Layout
    from metastep.optim.options import Group
    from metastep.optim.work import Work


@dataclass(frozen=True, eq=False)
class Shards:
    """The rows of a group's members that are here.

    Args:
        ranks: Among whom the members are spread.
        by_member: Per member, the places of its rows that are here among the group's R rows.
        parts: (R,) into how many parts the tensor of a row is cut.
        device: Of the members.
    """

    ranks: Ranks
    by_member: tuple[range, ...]
    parts: Tensor
    device: torch.device
    _places: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def places(self, active: Sequence[int]) -> Tensor:
        """Places of the rows here of some members, in order; kept, because they rarely change."""
        key = tuple(active)
        if key not in self._places:
            if len(self._places) > 64:
                self._places.clear()
            rows = [row for i in key for row in self.by_member[i]]
            self._places[key] = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return self._places[key]


def shards_of(members: Sequence[Tensor], layout: Layout) -> Shards | None:
    """How the members of a group are cut; None if all are whole."""
    if not any(map(is_sharded, members)):
        return None
    begin, places = 0, []
    for member, dim, count in zip(members, layout.unit_dims, layout.row_counts, strict=True):
        here = range(count) if dim is None else local_indices(member, dim)
        places.append(range(begin + here.start, begin + here.stop))
        begin += count
    parts = torch.tensor([part_count(member) for member in members], dtype=layout.row_elements.dtype)
    parts = parts.to(layout.tensor_of_row.device)[layout.tensor_of_row]
    return Shards(ranks_of(members), tuple(places), parts, layout.tensor_of_row.device)


def add_up(works: Sequence[Work]) -> None:
    """Make the rows of sharded groups those of the whole tensors, in one message of all ranks."""
    cut = [
        (work, rows, shards)
        for work in works
        if (rows := work.rows) is not None and (shards := work.rates.shards) is not None and work.rates.deviations
    ]
    if not cut:  # rates of single elements need nothing of other ranks
        return
    ranks = cut[0][2].ranks
    if any(shards.ranks is not ranks for _, _, shards in cut):
        ranks = None
    device = cut[0][1].device
    message = torch.cat([(rows * shards.parts).reshape(-1).to(device) for _, rows, shards in cut])
    sums = torch.split(mean_over_ranks(message, ranks), [rows.numel() for _, rows, _ in cut])
    for (work, rows, _), found in zip(cut, sums, strict=True):
        work.rows = found.reshape(rows.shape).to(rows.device)


def refuse_flattened(group: Group, members: Sequence[Tensor]) -> None:
    """Refuse what FSDP1 leaves of parameters where a rate is of more than a single element.

    Raises:
        ValueError: naming what to do.
    """
    if group["levels"] != ("parameter",) and any(map(is_flattened, members)):
        raise ValueError(
            f"levels must be ('parameter',) for parameters that FSDP1 has flattened, got {group['levels']}: a rank has "
            "a piece of one long vector, not layers and units; shard with torch.distributed.fsdp.fully_shard."
        )
