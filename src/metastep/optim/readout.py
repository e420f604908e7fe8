"""Reading the rates: as tensors by name, as a table, as a TensorBoard log."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

import torch

from metastep.core.distributed import local
from metastep.core.inner import row_views
from metastep.optim.group_state import GroupState, real_view

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from metastep.optim.options import Group, Options


class Readable(Protocol):
    """What the rates of an optimizer are read from."""

    param_groups: list[dict[str, Any]]

    def options(self, position: int) -> Options:
        """The checked options of a group."""

    def group_state(self, position: int) -> GroupState | None:
        """Its packed rates; None as long as they stand at their start."""


def rates(optimizer: Readable) -> list[dict[str, Any]]:
    """Per parameter group, what is in use now, as new tensors on the device of the parameters.

    Returns:
        Per group a dict with one entry per level ("global": 0-d; "layer": name to 0-d; "unit": name to (units,);
        "parameter": name to a tensor of its shape), "combined" (name to the rate that multiplies the direction, of a
        shape that broadcasts against the parameter), "weights", "clipped" and "rejected" (level to 0-d) and
        "alignment" (level to the last cosine between gradient and last direction, shaped like the level; empty until
        the second step) and "cut" (0-d, what the safeguard leaves of the rates). All rates include the cut and the
        schedule factor that `group["lr"]` now stands for. A parameter that has had no gradient yet stands at the
        group's `lr`. Of sharded parameters "parameter" and, beside it, "combined" are of the part that is here.
    """
    with torch.no_grad():
        return [
            read_group(group, optimizer.options(position), optimizer.group_state(position))
            for position, group in enumerate(optimizer.param_groups)
        ]


def read_group(group: Group, options: Options, packed: GroupState | None) -> dict[str, Any]:
    """One group's entry of `rates`."""
    names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
    single = torch.promote_types(torch.get_default_dtype(), torch.float32)  # whatever the default is
    lr = group["lr"].reshape(()) if isinstance(group["lr"], torch.Tensor) else torch.tensor(group["lr"], dtype=single)
    levels = options.levels
    result: dict[str, Any] = {level: {} for level in levels} | {"combined": {}, "cut": torch.ones(())}
    if "global" in levels:
        result["global"] = lr.clone() if packed is None else packed.rates("global")[0]
    for name, parameter in zip(names, group["params"], strict=True):
        if parameter.requires_grad:
            start = lr.to(parameter.device, copy=True)
            for level in levels:
                if level != "global":
                    like = local(parameter) if level == "parameter" else start
                    result[level][name] = start.expand_as(like).clone()
            result["combined"][name] = start
    if packed is None:
        result["weights"] = dict(zip(levels, torch.tensor(options.start_weights, dtype=single), strict=True))
        none = {level: torch.zeros((), dtype=torch.int64) for level in levels}
        return result | {"clipped": none, "rejected": dict(none), "alignment": {}}
    factor = packed.factor(group["lr"], options.safeguard)
    result["cut"] = packed.guard[1].clone() if options.safeguard else torch.ones(())
    if "global" in levels:
        result["global"] = result["global"] * factor
    by_level = {level: packed.rates(level) * factor for level in packed.deviations}
    fill(result, packed, by_level)
    rows, members = packed.combined_rows() * factor, [real_view(p) for p in packed.members]
    if packed.shards is not None and "parameter" in levels:  # rates of elements are where the elements are
        rows, members = rows[packed.shards.places(range(len(members)))], [real_view(local(p)) for p in packed.members]
    combined = row_views(rows, packed.layout.unit_dims, members)
    for i, name in enumerate(packed.names):
        if "parameter" in levels:
            fine = packed.elementwise_rates(i) * factor
            result["parameter"][name] = fine
            result["combined"][name] = (combined[i] + packed.weights[-1] * fine).clamp(max=packed.limit)
        else:
            result["combined"][name] = combined[i].clamp(max=packed.limit)
    alignment: dict[str, Any] = {level: {} for level in packed.alignment}
    if "global" in alignment:
        alignment["global"] = packed.alignment["global"][0].clone()
    fill(alignment, packed, packed.alignment)
    counts = {"clipped": packed.rejections[0].clone(), "rejected": packed.rejections[1].clone()}
    return (
        result
        | {"weights": dict(zip(levels, packed.weights.clone(), strict=True)), "alignment": alignment}
        | {key: dict(zip(levels, value, strict=True)) for key, value in counts.items()}
    )


def fill(result: dict[str, Any], packed: GroupState, by_level: dict[str, Tensor]) -> None:
    """Sort packed values of layers and units under the names of their tensors."""
    layout = packed.layout
    for i, name in enumerate(packed.names):
        if "layer" in by_level:
            result["layer"][name] = by_level["layer"][layout.layer_indices[i]].clone()
        if "unit" in by_level:
            start = layout.unit_offsets[i]
            result["unit"][name] = by_level["unit"][start : start + layout.row_counts[i]].clone()


def describe(optimizer: Readable) -> str:
    """The rates as a table: one line per tensor, units and parameters as smallest, mean and largest."""
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=False)
    for position, group in enumerate(rates(optimizer)):
        levels = [level for level in ("layer", "unit", "parameter") if level in group]
        weights = ", ".join(f"{level} {float(weight):.3f}" for level, weight in group["weights"].items())
        title = f"group {position}: weights {weights}"
        if "global" in group:
            title += f"; global rate {float(group['global']):.4g}"
        counts = "; ".join(
            f"{kind} " + ", ".join(f"{level} {int(count)}" for level, count in group[kind].items())
            for kind in ("clipped", "rejected")
        )
        table = Table(title=title, caption=counts)
        for heading in ("tensor", *levels, "combined"):
            table.add_column(heading, justify="left" if heading == "tensor" else "right")
        for name, combined in group["combined"].items():
            table.add_row(name, *(spell(group[level][name]) for level in levels), spell(combined))
        console.print(table)
    return text.getvalue()


def spell(values: Tensor) -> str:
    """A rate, or the smallest, mean and largest of several."""
    if values.numel() == 0:
        return "-"
    if values.numel() == 1:
        return f"{float(values):.4g}"
    return f"{float(values.min()):.3g} .. {float(values.mean()):.3g} .. {float(values.max()):.3g}"


def log_rates(optimizer: Readable, writer: SummaryWriter, step: int, prefix: str = "rates") -> None:
    """Write the current rates to TensorBoard; this reads them back from the device.

    Args:
        optimizer: Any hypergradient optimizer.
        writer: A `torch.utils.tensorboard.SummaryWriter` (extra "track").
        step: Step to log at.
        prefix: First part of every tag; the rest is group, level and tensor name.

    Example:
        >>> from unittest.mock import Mock
        >>> from metastep.optim import HyperSGD, log_rates
        >>> optimizer = HyperSGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> writer = Mock()  # torch.utils.tensorboard.SummaryWriter("logs")
        >>> log_rates(optimizer, writer, step=0)
        >>> writer.add_scalar.called
        True
    """
    for position, group in enumerate(rates(optimizer)):
        head = f"{prefix}/{position}"
        for level, weight in group["weights"].items():
            writer.add_scalar(f"{head}/weight/{level}", float(weight), step)
        if "global" in group:
            writer.add_scalar(f"{head}/global", float(group["global"]), step)
        for name, rate in group.get("layer", {}).items():
            writer.add_scalar(f"{head}/layer/{name}", float(rate), step)
        for level in ("unit", "parameter", "combined"):
            for name, values in group.get(level, {}).items():
                if values.numel() == 1:
                    writer.add_scalar(f"{head}/{level}/{name}", float(values), step)
                elif values.numel():
                    writer.add_histogram(f"{head}/{level}/{name}", values.detach().cpu(), step)
