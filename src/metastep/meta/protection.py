"""Leave no trace: buffers, random-number streams and gradients as they were before a look-ahead."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def protected_buffers() -> Iterator[None]:
    """Within, every module that runs finds its buffers back afterwards (batch norm's running statistics and count).

    The modules are found by a global forward pre-hook: whoever is called is copied first. So no handle of the model is
    needed, and networks that a loss closes over, teachers included, are protected as well. A buffer that is replaced
    by another tensor comes back as the tensor that it was.
    """
    saved: list[tuple[nn.Module, str, Tensor]] = []
    values: dict[Tensor, Tensor] = {}
    seen: set[nn.Module] = set()

    def save(module: nn.Module, args: object) -> None:
        if module in seen:
            return
        for part in module.modules():
            if part not in seen:
                seen.add(part)
                present = [(name, buffer) for name, buffer in part._buffers.items() if buffer is not None]
                saved.extend((part, name, buffer) for name, buffer in present)
                values.update((buffer, buffer.clone()) for _, buffer in present if buffer not in values)

    handle = register_module_forward_pre_hook(save)
    try:
        with warnings.catch_warnings():
            # that a compiled module calls the hook twice does no harm: it copies once
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
            yield
    finally:
        handle.remove()
        with torch.no_grad():
            for buffer, before in values.items():
                buffer.copy_(before)
        for module, name, buffer in saved:
            module._buffers[name] = buffer


@contextmanager
def protected_rng(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, random numbers may be drawn; torch's streams on the CPU and the tensors' devices stand still."""
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
def set_aside_gradients(parameters: Iterable[nn.Parameter], *, keep: bool = True) -> Iterator[None]:
    """Within, ``grad`` of the parameters is free to use and nobody else's hook sees it; afterwards all is as it was.

    With ``keep=False`` the gradients are let go at once and are None afterwards, except those left over on parameters
    that require none: nothing would bring them back.
    """
    kept = [(p, p.grad if keep or not p.requires_grad else None, p._post_accumulate_grad_hooks) for p in parameters]
    for parameter, _, hooks in kept:
        parameter.grad = None
        if hooks is not None:
            parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for parameter, gradient, hooks in kept:
            parameter.grad = gradient
            if parameter._post_accumulate_grad_hooks is not hooks:
                parameter._post_accumulate_grad_hooks = hooks
