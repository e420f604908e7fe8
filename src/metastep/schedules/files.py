"""Schedules on disk and by name: our safetensors files, published ``.pth`` snapshots, and those in the package.

No file is ever unpickled into code, and what a file says of its sizes is held against the tensors that are there before
anything of such a size is made.
"""

import difflib
import hashlib
import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metastep.files import decode_json, write_atomically
from metastep.schedules.base import LearnedSchedule, Schedule
from metastep.schedules.migration import gone
from metastep.schedules.mlrsnet import GateLayout, MLRSNet
from metastep.schedules.registry import REGISTRY
from metastep.schedules.scale import ScaleRule

_FORMAT, _SCHEMA = "metastep.schedule", "1"
_SUFFIX = ".safetensors"
_LARGEST_FILE = 2**28  # bytes; the largest schedule in the package has 0.1 MB
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ScheduleFileError(ValueError):
    """A file that holds no readable schedule: what was found in it and what can be done."""


class _Header(msgspec.Struct):
    """What is read of the head of a safetensors file, besides the tensors."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


# ---- saving


def save_schedule(schedule: Schedule, path: str | Path, *, learned_on: Sequence[str] = ()) -> None:
    """Write a schedule, its configuration and scale rule included, to a safetensors file.

    The file is replaced as a whole or not at all; it has the checksum of its content. Equal schedules are equal files.

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
    name = type(schedule).__name__
    if REGISTRY.get(name) is not type(schedule):
        raise TypeError(
            f"schedule must be one of {', '.join(REGISTRY)}, got {name}; a schedule of your own needs its line in "
            "metastep/schedules/registry.py to be saved."
        )
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in schedule.state_dict().items()}
    described = {"class": name, "config": json.dumps(schedule.config())}
    if learned_on:
        described["learned_on"] = json.dumps(list(learned_on))
    metadata = {"format": _FORMAT, "schema": _SCHEMA, **described, "sha256": _checksum(tensors, described)}
    write_atomically(Path(path), _in_order(safetensors.torch.save(tensors, metadata=metadata)))


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted; the library writes them in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    described = f"{metadata.get('class')}{metadata.get('config')}{metadata.get('learned_on', '')}"
    digest = hashlib.sha256(described.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(cast("Any", tensor.flatten().view(torch.uint8)).numpy().tobytes())
    return digest.hexdigest()


# ---- loading


def load_schedule(path_or_name: str | Path, gate_layout: GateLayout | None = None) -> Schedule:
    """Read a schedule that comes with the package, our safetensors file, or a published ``.pth`` snapshot.

    Files are told apart by content. Nothing inside a file is run, and no random number is drawn.

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
    ours = data[8:9] == b"{"
    try:
        if ours and gate_layout is not None:
            raise ValueError("gate_layout is stored in the file; leave the argument out.")
        with torch.inference_mode(False), torch.device("cpu"):
            return _read(data) if ours else _read_published(data, gate_layout or "ifgo")
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise ScheduleFileError(f"{path}: {_short(' '.join(str(error).split()), 1000)}") from error


def _read(data: bytes) -> Schedule:
    try:
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
        metadata = _metadata(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"broken or truncated safetensors file ({error}).") from error
    if metadata.get("format") != _FORMAT or metadata.get("schema") != _SCHEMA:
        raise ValueError(
            f"not a metastep schedule of schema {_SCHEMA}; its metadata says "
            f"format {metadata.get('format')!r}, schema {metadata.get('schema')!r}."
        )
    if metadata.get("sha256") != _checksum(tensors, metadata):
        raise ValueError("the checksum of the content does not agree; the file is damaged.")
    if not {"class", "config"} <= metadata.keys():
        raise ValueError("its metadata lack the class or the config of the schedule.")
    name = metadata["class"]
    return _with_weights(name, decode_json(metadata["config"], dict[str, Any], "the configuration"), tensors)


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    return decode_json(data[8 : 8 + size], _Header, "the header").metadata


def _with_weights(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Schedule:
    """The schedule of this configuration with these weights; nothing is made of a size that they do not have.

    Raises:
        ValueError: if they do not go together, or the weights are no finite floating-point numbers.
    """
    _check_sizes(name, config, tensors)
    with torch.device("meta"):  # names and shapes without memory, and without drawing fresh weights
        schedule = build_schedule(name, config)
    expected = schedule.state_dict()
    if missing := expected.keys() ^ tensors.keys():
        raise ValueError(f"{name} of this configuration has other tensors: {', '.join(sorted(missing)[:3])}.")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(f"{key} must have shape {tuple(expected[key].shape)}, got {tuple(tensor.shape)}.")
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1 or not kinds <= set(_DTYPES):
        found = ", ".join(sorted(map(str, kinds)))
        raise ValueError(f"weights must be of one dtype, float16, bfloat16, float32 or float64, got {found}.")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("some weights are not finite; such a schedule sets no rate.")
    schedule.load_state_dict(tensors, assign=True)
    return schedule


def _check_sizes(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Hold the sizes that a configuration claims, those of its members together, against the tensors."""
    there = {"tensors": len(tensors), "elements": sum(tensor.numel() for tensor in tensors.values())}
    claimed: dict[str, int] = {}
    for kind, part in _members(name, config):
        if not issubclass(kind, LearnedSchedule):
            continue
        for size, unit in kind.sizes.items():
            value = part.get(size)
            if not isinstance(value, int):
                continue  # the schedule says what is wrong with it
            claimed[size] = claimed.get(size, 0) + value
            if claimed[size] > there[unit]:
                raise ValueError(f"{size}={value} does not fit the {there[unit]} {unit} in the file.")


def _members(name: Any, config: Any) -> Iterator[tuple[type[Schedule], Mapping[str, Any]]]:
    """The class and the configuration of a schedule, and of all that are members of it."""
    if instead := gone(name):
        raise ValueError(f"it is a {name}: {instead}")
    if not isinstance(name, str) or name not in REGISTRY:
        raise ValueError(f"schedule class {name!r} is unknown; known: {', '.join(REGISTRY)}.")
    if not isinstance(config, Mapping):
        raise ValueError(f"the configuration of {name} must be an object, got {type(config).__name__}.")
    yield REGISTRY[name], config
    for value in config.values():
        for part in value if isinstance(value, list) else ():
            if isinstance(part, Mapping):
                yield from _members(part.get("class"), part.get("config"))


def build_schedule(name: str, config: Mapping[str, Any]) -> Schedule:
    """Make a schedule from its class name and ``config()``, with fresh weights.

    Raises:
        ValueError: for an unknown class, or a configuration that it refuses or takes for another one.
    """
    ((kind, _), *_) = _members(name, config)
    arguments = {key: _built(value) for key, value in config.items()}
    try:
        schedule = kind.from_config(arguments)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} refuses the configuration {_short(config)}: {error}") from error
    taken = schedule.config()
    for key, value in config.items():
        if not _same(value, taken[key]):
            raise ValueError(f"{name} takes {key}={_short(value)} for {_short(taken[key])}; write that.")
    return schedule


def _built(value: Any) -> Any:
    """A value of a configuration with the members in it made."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "class" in part for part in value):
        return [build_schedule(part["class"], part["config"]) for part in value]
    return value


def _same(given: Any, taken: Any) -> bool:
    """Whether a value of a configuration means itself: no text stands for True, no True for 1.

    What an older file does not say is passed.
    """
    if isinstance(given, dict) and isinstance(taken, dict):
        return all(key in taken and _same(value, taken[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(taken, list):
        return len(given) == len(taken) and all(map(_same, given, taken))
    numbers = {type(given), type(taken)} <= {int, float}
    return (type(given) is type(taken) or numbers) and given == taken


def _short(value: Any, length: int = 200) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


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
    try:
        return decode_json(_metadata(data).get("learned_on", "[]"), tuple[str, ...], "learned_on")
    except ValueError:
        return ()


def read_schedule_file(path_or_name: str | Path) -> bytes:
    """The bytes of a schedule that comes with the package or lies on disk.

    Raises:
        FileNotFoundError: if there is no such file or name; it says the nearest names.
        ScheduleFileError: if it is far too large to be one.
    """
    pretrained = pretrained_file(path_or_name) if isinstance(path_or_name, str) else None
    if pretrained is not None:
        return pretrained.read_bytes()
    path = Path(path_or_name)
    if not path.is_file():
        if instead := gone(str(path_or_name)):
            raise FileNotFoundError(f"no schedule {str(path_or_name)!r}: {instead}")
        names = list(shipped_schedules())
        near = difflib.get_close_matches(path.name, names, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"or a name: {', '.join(names)}."
        raise FileNotFoundError(
            f"no schedule file {str(path_or_name)!r}; give the path of a .safetensors or .pth file, {hint}"
        )
    if path.stat().st_size > _LARGEST_FILE:
        raise ScheduleFileError(
            f"{path}: {path.stat().st_size:,} bytes are no schedule; the largest has a few megabytes."
        )
    return path.read_bytes()


# ---- published MLR-SNet snapshots: .pth files of ten tensors under other names

_OURS = {
    "fc_i2h.0": "input_bottleneck",
    "fc_i2h.2": "input_gates",
    "fc_h2h.0": "hidden_bottleneck",
    "fc_h2h.2": "hidden_gates",
}
#: All that a file of named tensors mentions, besides the types of its storages.
_TENSORS_ONLY = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_PICKLES_IN_OLD_FORMAT = 5


def _read_published(data: bytes, gate_layout: GateLayout) -> MLRSNet:
    """Return the network of a published snapshot: one or more cells ``layer1`` (``layer2.k``), an output ``layer3``.

    Raises:
        ValueError: if the bytes are no torch file, would need unpickling of code, or hold other tensors.
    """
    try:
        _refuse_code(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that torch does not write
            loaded: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"refused: it does not hold tensors alone, and reading the rest would run code from the file ({reason})."
        ) from error
    except _CompressedError as error:
        raise ValueError("refused: torch files are not compressed; save it anew with torch.save.") from error
    except Exception as error:  # torch.load fails on random bytes in many ways (EOFError, RuntimeError, KeyError ...)
        raise ValueError(
            "no schedule, or damaged; give a .safetensors file that metastep saved, or a published .pth snapshot."
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"expected named tensors, found {type(loaded).__name__}.")
    if any(tensor.layout is not torch.strided or tensor.device.type != "cpu" for tensor in loaded.values()):
        raise ValueError("expected plain tensors, found sparse ones or ones without values.")
    if sum(tensor.numel() * tensor.element_size() for tensor in loaded.values()) > len(data):
        raise ValueError("its tensors claim more numbers than the file holds.")
    weights = {_rename(str(name)): tensor.detach().clone() for name, tensor in loaded.items()}
    try:
        bottleneck, hidden = weights["cells.0.hidden_bottleneck.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("cells."))
        config = {
            "hidden_size": hidden,
            "num_layers": layers,
            "gate_layout": gate_layout,
            "bottleneck": bottleneck,
            "scale": ScaleRule(text=bottleneck == hidden).config(),
            "trained_for": "sgd, sgd-momentum",
        }
        found = _with_weights("MLRSNet", config, weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"not the tensors of an MLR-SNet: {error}") from error
    assert isinstance(found, MLRSNet)
    return found


class _CompressedError(Exception):
    """A torch file whose entries are larger than they seem."""


def _refuse_code(data: bytes) -> None:
    """Raise unless the pickles of a torch file mention nothing but tensors, and nothing in it is compressed."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > len(data):
                raise _CompressedError
            pickles = [archive.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
    else:
        pickles = [data] * _PICKLES_IN_OLD_FORMAT
    place = 0
    for content in pickles:
        stream = io.BytesIO(content)
        stream.seek(place if content is data else 0)
        for opcode, argument, _ in pickletools.genops(stream):
            name = str(argument) if opcode.name == "GLOBAL" else ""
            named = name in _TENSORS_ONLY or re.fullmatch(r"torch \w+Storage", name)
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4") and not named:
                raise pickle.UnpicklingError(f"it mentions {name or 'something'}")
        place = stream.tell()


def _rename(name: str) -> str:
    if name.startswith("layer3."):
        return name.replace("layer3.", "output.", 1)
    found = re.fullmatch(r"layer(?:1|2\.(\d{1,9}))\.(fc_[ih]2h\.[02])\.(weight|bias)", name)
    if found is None:
        raise ValueError(
            f"unexpected tensor {_short(name)!r}; an MLR-SNet has layer1.fc_i2h, layer1.fc_h2h and layer3."
        )
    above, part, kind = found.groups()
    return f"cells.{0 if above is None else int(above) + 1}.{_OURS[part]}.{kind}"


# ---- what comes with the package: pretrained/NAME.safetensors, and NAME.md, its model card


def shipped_schedules() -> dict[str, str]:
    """Return the pretrained schedules that :func:`metastep.load_schedule` knows by name, each with one line.

    Each of them was trained by a command that its model card gives, with what it did on other tasks and where it loses.

    Example:
        >>> shipped_schedules()["mlrsnet-cifar10"]
        'MLR-SNet, three phases, learned on CIFAR-10 with a ResNet-8'
    """
    names = sorted(entry.name.removesuffix(_SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(_SUFFIX))
    return {name: _summary(pretrained_card(name)) for name in names}


def pretrained_file(name: str) -> Traversable | None:
    """The file of a pretrained schedule; None if there is no schedule of that name."""
    file = _folder() / f"{name}{_SUFFIX}"
    return file if _is_plain(name) and file.is_file() else None


def pretrained_card(name: str) -> str:
    """The model card of a pretrained schedule, Markdown: how it was trained, what it did elsewhere, its limits.

    Raises:
        FileNotFoundError: if there is no schedule of that name.
    """
    return (_folder() / f"{name}.md").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return files("metastep.schedules") / "pretrained"


def _is_plain(name: str) -> bool:
    """Whether it is a name, and no path out of the folder."""
    return bool(name) and not set(name) & set("/\\:\0") and not name.startswith(".")


def _summary(card: str) -> str:
    """The first line of text below the title, without its full stop."""
    body = f"\n{card}".partition("\n# ")[2].splitlines()[1:]
    return next((line for line in body if line.strip()), "").rstrip(".")
