"""The published MLR-SNet snapshots: .pth files of ten tensors under other names, read without running code."""

import io
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metastep.schedules.mlrsnet import GateLayout, MLRSNet
from metastep.schedules.scale import ScaleRule

_OURS = {
    "fc_i2h.0": "input_bottleneck",
    "fc_i2h.2": "input_gates",
    "fc_h2h.0": "hidden_bottleneck",
    "fc_h2h.2": "hidden_gates",
}


def read_published(data: bytes, gate_layout: GateLayout) -> MLRSNet:
    """Return the network of a published snapshot: one or more cells ``layer1`` (``layer2.k``), an output ``layer3``.

    Raises:
        ValueError: if the bytes are no torch file, would need unpickling of code, or hold other tensors.
    """
    try:
        loaded: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"refused: no tensors only, reading it would run code from the file ({reason})") from error
    except Exception as error:  # torch.load fails on random bytes in many ways (EOFError, RuntimeError, KeyError ...)
        raise ValueError(f"neither a safetensors nor a torch file, or truncated ({error})") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"expected named tensors, found {type(loaded).__name__}.")
    weights = {_rename(str(name)): tensor for name, tensor in loaded.items()}
    try:
        bottleneck, hidden = weights["cells.0.hidden_bottleneck.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("cells."))
        net = MLRSNet(hidden, layers, gate_layout, bottleneck, ScaleRule(text=bottleneck == hidden))
        net.to(weights["output.weight"].dtype)
        net.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"not the tensors of an MLR-SNet: {error}") from error
    return net


def _rename(name: str) -> str:
    if name.startswith("layer3."):
        return name.replace("layer3.", "output.", 1)
    found = re.fullmatch(r"layer(?:1|2\.(\d+))\.(fc_[ih]2h\.[02])\.(weight|bias)", name)
    if found is None:
        raise ValueError(f"unexpected tensor {name!r}; an MLR-SNet has layer1.fc_i2h, layer1.fc_h2h and layer3.")
    above, part, kind = found.groups()
    return f"cells.{0 if above is None else int(above) + 1}.{_OURS[part]}.{kind}"
