"""Isolation of a look-ahead: buffers, random-number streams and gradients are afterwards as they were before."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from metastep.core.distributed import NoSync


@contextmanager
def visiting_modules(visit: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within, every module that runs, and every part of it, is visited once before it does.

    The modules are found by a global forward pre-hook, so no handle of the model is needed, and networks that a loss
    closes over, teachers included, are found as well.
    """
    seen: set[nn.Module] = set()

    def hook(module: nn.Module, args: object) -> None:
        if module not in seen:
            for part in module.modules():
                if part not in seen:
                    seen.add(part)
                    visit(part)

    handle = register_module_forward_pre_hook(hook)
    try:
        with warnings.catch_warnings():
            # that a compiled module calls the hook twice does no harm: it visits once
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
            yield
    finally:
        handle.remove()


@contextmanager
def isolated_buffers(model: nn.Module | None = None) -> Iterator[None]:
    """Within, every module that runs finds its buffers back afterwards (batch norm's running statistics and count).

    A buffer that is replaced by another tensor comes back as the tensor that it was.

    Args:
        model: whose buffers these are, if it is known: then no hook has to look for modules that run.
    """
    saved: list[tuple[nn.Module, str, Tensor]] = []
    values: dict[Tensor, Tensor] = {}

    def save(part: nn.Module) -> None:
        present = [(name, buffer) for name, buffer in part._buffers.items() if buffer is not None]
        saved.extend((part, name, buffer) for name, buffer in present)
        values.update((buffer, buffer.clone()) for _, buffer in present if buffer not in values)

    for part in [] if model is None else model.modules():
        save(part)
    try:
        with visiting_modules(save) if model is None else nullcontext():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in values.items():
                buffer.copy_(before)
        for module, name, buffer in saved:
            module._buffers[name] = buffer


@contextmanager
def isolated_rng(tensors: Iterable[Tensor]) -> Iterator[None]:
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
def isolated_gradients(parameters: Iterable[nn.Parameter], *, keep: bool = True) -> Iterator[None]:
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


@contextmanager
def no_sync() -> Iterator[None]:
    """Within, a DistributedDataParallel model that runs sends neither gradients nor buffers, as in its ``no_sync``."""
    replicas = NoSync()
    try:
        with visiting_modules(replicas.disable_sync):
            yield
    finally:
        replicas.restore()


@contextmanager
def isolated_other_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, gradients of other parameters of the modules that run are free to use; afterwards all is as it was."""
    known = {id(parameter) for parameter in parameters}
    kept: list[tuple[nn.Parameter, Tensor | None]] = []

    def save(part: nn.Module) -> None:
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in known:
                known.add(id(parameter))
                kept.append((parameter, parameter.grad))
                parameter.grad = None

    try:
        with visiting_modules(save):
            yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


#: The states of torch's random-number streams: the CPU's, and those of devices.
RngStates = tuple[Tensor, dict[torch.device, Tensor]]


def rng_states(tensors: Iterable[Tensor]) -> RngStates:
    """The states of torch's streams on the CPU and the tensors' devices, as they are now."""
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    on_devices = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}
    return torch.random.get_rng_state(), on_devices


def set_rng_states(streams: RngStates) -> None:
    """Put the streams back to these states; within :func:`isolated_rng` nobody outside notices."""
    on_cpu, on_devices = streams
    torch.random.set_rng_state(on_cpu)
    for device, state in on_devices.items():
        torch.get_device_module(device).set_rng_state(state, device)
