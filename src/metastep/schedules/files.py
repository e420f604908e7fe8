"""Schedules on disk: safetensors with their configuration and a checksum; no file is ever unpickled into code."""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metastep.files import write_atomically
from metastep.schedules.annealing import Cosine, OneCycle, WarmRestarts, WarmupStableDecay
from metastep.schedules.base import Schedule
from metastep.schedules.closed_form import Constant, Exponential, MultiStep, Staircase
from metastep.schedules.mlrsnet import GateLayout, MLRSNet
from metastep.schedules.phased import FixedOutput, Phased
from metastep.schedules.plateau import ReduceOnPlateau
from metastep.schedules.published import read_published
from metastep.schedules.shipped import shipped_file, shipped_schedules
from metastep.schedules.signal import SignalSchedule

_FORMAT, _SCHEMA = "metastep.schedule", "1"


class ScheduleFileError(ValueError):
    """A file that holds no readable schedule: what was found in it and what can be done."""


def _phased(config: dict[str, Any]) -> Phased:
    members = [build_schedule(member["class"], member["config"]) for member in config["schedules"]]
    return Phased(members, boundaries=config["boundaries"])


_CLOSED_FORMS = (Constant, MultiStep, Exponential, Staircase, Cosine, WarmRestarts, OneCycle, WarmupStableDecay)

#: Every schedule that can be read from a file, and how its configuration makes one.
_BUILDERS: dict[str, Callable[[dict[str, Any]], Schedule]] = {
    "MLRSNet": MLRSNet.from_config,
    "SignalSchedule": SignalSchedule.from_config,
    "FixedOutput": FixedOutput.from_config,
    "Phased": _phased,
    **{form.__name__: lambda config, form=form: form(**config) for form in (*_CLOSED_FORMS, ReduceOnPlateau)},  # type: ignore[misc]
}


def build_schedule(name: str, config: dict[str, Any]) -> Schedule:
    """Make a schedule from its class name and ``config()``, with fresh weights.

    Raises:
        ScheduleFileError: for an unknown class or a configuration that it refuses.
    """
    if name not in _BUILDERS:
        raise ScheduleFileError(f"schedule class {name!r} is unknown; known: {', '.join(_BUILDERS)}.")
    try:
        return _BUILDERS[name](config)
    except (TypeError, ValueError, KeyError) as error:
        raise ScheduleFileError(f"{name} refuses the configuration {config}: {error}") from error


def save_schedule(schedule: Schedule, path: str | Path, *, learned_on: Sequence[str] = ()) -> None:
    """Write a schedule, its configuration and scale rule included, to a safetensors file.

    The file is replaced as a whole or not at all; it has the checksum of its content.

    Args:
        schedule: any metastep schedule.
        path: the file; ``.safetensors`` by custom.
        learned_on: names of the tasks that it was learned on; :func:`learned_on` reads them.

    Raises:
        TypeError: for something that is no metastep schedule.
        OSError: if it cannot be written; an older file is then untouched.

    Example:
        >>> save_schedule(MLRSNet(hidden_size=8), tmp_path / "small.safetensors")
        >>> load_schedule(tmp_path / "small.safetensors").hidden_size
        8
    """
    if type(schedule).__name__ not in _BUILDERS:
        raise TypeError(f"schedule must be one of {', '.join(_BUILDERS)}, got {type(schedule).__name__}.")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in schedule.state_dict().items()}
    described = {"class": type(schedule).__name__, "config": json.dumps(schedule.config())}
    if learned_on:
        described["learned_on"] = json.dumps(list(learned_on))
    metadata = {"format": _FORMAT, "schema": _SCHEMA, **described, "sha256": _checksum(tensors, described)}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata=metadata))


def load_schedule(path_or_name: str | Path, gate_layout: GateLayout | None = None) -> Schedule:
    """Read a schedule that comes with the package, our safetensors file, or a published ``.pth`` snapshot.

    Files are told apart by content. Nothing inside a file is run.

    Args:
        path_or_name: the file, or one of :func:`metastep.shipped_schedules`. Such a name means the same in every
            folder; a file of your own that is called so is ``./NAME``, or a ``Path``.
        gate_layout: for published snapshots only, whose files do not say it: default ``"ifgo"``, with which their
            authors used them.

    Returns:
        The schedule, on the CPU, whichever device wrote it.

    Raises:
        FileNotFoundError: if there is no such file or name; it says the nearest names.
        ScheduleFileError: if it is broken, of another kind, or could be read only by running code inside it.

    Example:
        >>> save_schedule(Cosine(100), tmp_path / "cosine.safetensors")
        >>> load_schedule(tmp_path / "cosine.safetensors").factor_at(100) < 1e-3
        True
        >>> len(load_schedule("mlrsnet-cifar10").schedules)
        3
    """
    path, data = Path(path_or_name), read_schedule_file(path_or_name)
    schedule: Schedule
    if data[8:9] == b"{":
        if gate_layout is not None:
            raise ScheduleFileError(f"{path}: gate_layout is stored in the file; leave the argument out.")
        schedule = _read(path, data)
    else:
        try:
            schedule = read_published(data, gate_layout or "ifgo")
        except ValueError as error:
            raise ScheduleFileError(f"{path}: {error}") from error
    if not all(weight.isfinite().all() for weight in schedule.state_dict().values()):
        raise ScheduleFileError(f"{path}: some weights are not finite; such a schedule sets no rate.")
    return schedule


def learned_on(path_or_name: str | Path) -> tuple[str, ...]:
    """The names of the tasks that a schedule was learned on together; empty where the file does not say.

    Example:
        >>> save_schedule(MLRSNet(hidden_size=8), tmp_path / "both.safetensors", learned_on=["digits/mlp", "wine/mlp"])
        >>> learned_on(tmp_path / "both.safetensors")
        ('digits/mlp', 'wine/mlp')
    """
    data = read_schedule_file(path_or_name)
    if data[8:9] != b"{":
        return ()
    size = int.from_bytes(data[:8], "little")
    try:
        names = json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("learned_on", "[]"))
    except ValueError:
        return ()
    return tuple(map(str, names))


def read_schedule_file(path_or_name: str | Path) -> bytes:
    """The bytes of a schedule that comes with the package or lies on disk.

    Raises:
        FileNotFoundError: if there is no such file or name; it says the nearest names.
    """
    shipped = shipped_file(path_or_name) if isinstance(path_or_name, str) else None
    if shipped is not None:
        return shipped.read_bytes()
    path = Path(path_or_name)
    if not path.is_file():
        names = list(shipped_schedules())
        near = difflib.get_close_matches(path.name, names, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"or a name: {', '.join(names)}."
        raise FileNotFoundError(
            f"no schedule file {str(path_or_name)!r}; give the path of a .safetensors or .pth file, {hint}"
        )
    return path.read_bytes()


def _read(path: Path, data: bytes) -> Schedule:
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ScheduleFileError(f"{path}: broken or truncated safetensors file ({error}).") from error
    if metadata.get("format") != _FORMAT or metadata.get("schema") != _SCHEMA:
        raise ScheduleFileError(
            f"{path}: not a metastep schedule of schema {_SCHEMA}; its metadata says "
            f"format {metadata.get('format')!r}, schema {metadata.get('schema')!r}."
        )
    if metadata.get("sha256") != _checksum(tensors, metadata):
        raise ScheduleFileError(f"{path}: the checksum of the content does not agree; the file is damaged.")
    try:
        schedule = build_schedule(metadata["class"], json.loads(metadata["config"]))
        if tensors:
            schedule.to(next(iter(tensors.values())).dtype)
        schedule.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ScheduleFileError(f"{path}: {error}") from error
    return schedule


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    described = f"{metadata.get('class')}{metadata.get('config')}{metadata.get('learned_on', '')}"
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(cast("Any", tensor.flatten().view(torch.uint8)).numpy().tobytes())
    return digest.hexdigest()
