"""Networks of learned optimizers on disk: safetensors with their class and configuration; nothing is unpickled."""

import json
from functools import cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from metastep.files import write_atomically
from metastep.lab.baselines.learned.networks import L2LNetwork, RNNPropNetwork, UpdateNetwork

_FORMAT, _SCHEMA = "metastep.update_network", "1"
_KINDS: dict[str, type[L2LNetwork] | type[RNNPropNetwork]] = {
    "L2LNetwork": L2LNetwork,
    "RNNPropNetwork": RNNPropNetwork,
}


def save_update_network(network: UpdateNetwork, path: str | Path) -> None:
    """Write a network with its configuration; the file is replaced as a whole or not at all.

    Raises:
        TypeError: for a network of another kind.
        OSError: if it cannot be written.
    """
    kind = type(network).__name__
    if kind not in _KINDS:
        raise TypeError(f"network must be one of {', '.join(_KINDS)}, got {kind}.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"format": _FORMAT, "schema": _SCHEMA, "class": kind, "config": json.dumps(network.config())}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata=metadata))


def load_update_network(path: str | Path) -> UpdateNetwork:
    """Read what :func:`save_update_network` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no readable network of this schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give the path of a .safetensors file of a learned optimizer.")
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: broken or truncated safetensors file ({error}).") from error
    if metadata.get("format") != _FORMAT or metadata.get("schema") != _SCHEMA or metadata.get("class") not in _KINDS:
        raise ValueError(
            f"{path}: not a learned optimizer of schema {_SCHEMA}; its metadata says format "
            f"{metadata.get('format')!r}, schema {metadata.get('schema')!r}, class {metadata.get('class')!r}."
        )
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn and thrown away
            network = _KINDS[metadata["class"]](**json.loads(metadata["config"]))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path}: some weights are not finite; such a network takes no steps.")
    return network


@cache
def shipped_network(name: str) -> UpdateNetwork:
    """The network that comes with the package, "l2l" or "rnnprop"; one for all, not to be trained on."""
    return load_update_network(Path(__file__).with_name(f"{name}.safetensors")).requires_grad_(False)
