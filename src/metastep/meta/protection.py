"""Leave no trace: buffers, random-number streams and gradients as they were before a look-ahead."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def protected_buffers() -> Iterator[None]:
    """Within, every module that runs finds its buffers back afterwards (batch norm's running statistics and count).

    The modules are found by a global forward pre-hook: whoever is called is copied first. So no handle of the model is
    needed, and networks that a loss closes over, teachers included, are protected as well.
    """
    saved: dict[Tensor, Tensor] = {}
    seen: set[nn.Module] = set()

    def save(module: nn.Module, args: object) -> None:
        if module in seen:
            return
        seen.update(module.modules())
        for buffer in module.buffers():
            if buffer not in saved:
                saved[buffer] = buffer.clone()

    handle = register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        handle.remove()
        with torch.no_grad():
            for buffer, before in saved.items():
                buffer.copy_(before)


@contextmanager
def protected_rng(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards the streams of the CPU and of the tensors' devices stand as before."""
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    kinds = {device.type for device in devices}
    if not kinds:
        with torch.random.fork_rng(devices=[]):
            yield
        return
    kind = kinds.pop()
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type=kind):
        yield


@contextmanager
def set_aside_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, ``grad`` of the parameters is free to use; afterwards it is the tensor that it was."""
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
