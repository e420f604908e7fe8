"""Isolation of a look-ahead: modules, random-number streams and gradients are afterwards as they were before."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

#: The states of torch's random-number streams: the CPU's, and those of devices.
RngStates = tuple[Tensor, dict[torch.device, Tensor]]


@contextmanager
def isolated_modules(
    model: nn.Module | None = None, *, sync: bool = True, gradients_except: Iterable[nn.Parameter] | None = None
) -> Iterator[None]:
    """Within, every module that runs finds its buffers and its mode (train or eval) back afterwards.

    The modules are found by a global forward pre-hook, so no handle of the model is needed, and networks that a loss
    closes over, teachers included, are found as well. A change of mode is noticed before any of them runs. A buffer
    that is replaced by another tensor comes back as the tensor that it was.

    Args:
        model: the only one that runs, if it is known: then no hook has to look for modules.
        sync: False turns the synchronisation of DistributedDataParallel off (gradients and buffers), as in its
            ``no_sync``.
        gradients_except: gradients of all parameters but these are free to use within and are put back, too.
    """
    before = _ModuleStates(sync, gradients_except)
    try:
        if model is None:
            with _mode_changes(before.keep_mode), _forward_passes(before.keep):
                yield
        else:
            before.keep(model)
            yield
    finally:
        before.put_back()


class _ModuleStates:
    """What modules had when they were first seen."""

    def __init__(self, sync: bool, gradients_except: Iterable[nn.Parameter] | None) -> None:
        self._sync = sync
        self._seen: set[nn.Module] = set()
        self._modes: dict[nn.Module, bool] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._values: dict[Tensor, Tensor] = {}
        self._replicas: list[tuple[nn.parallel.DistributedDataParallel, bool, bool]] = []
        self._known = None if gradients_except is None else {id(parameter) for parameter in gradients_except}
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []

    def keep(self, module: nn.Module) -> None:
        """Note everything of a module and of its parts, once."""
        if module in self._seen:
            return
        for part in module.modules():
            if part in self._seen:
                continue
            self._seen.add(part)
            self.keep_mode(part)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    self._buffers.append((part, name, buffer))
                    if buffer not in self._values:
                        self._values[buffer] = buffer.clone()
            if not self._sync and isinstance(part, nn.parallel.DistributedDataParallel):
                self._replicas.append((part, part.require_backward_grad_sync, part.require_forward_param_sync))
                part.require_backward_grad_sync = part.require_forward_param_sync = False
            if self._known is not None:
                self._keep_gradients(part, self._known)

    def keep_mode(self, module: nn.Module) -> None:
        """Note the mode of a module alone."""
        self._modes.setdefault(module, module.training)

    def _keep_gradients(self, part: nn.Module, known: set[int]) -> None:
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in known:
                known.add(id(parameter))
                self._gradients.append((parameter, parameter.grad))
                parameter.grad = None

    def put_back(self) -> None:
        """Give everything back."""
        with torch.no_grad():
            for buffer, value in self._values.items():
                buffer.copy_(value)
        for module, name, buffer in self._buffers:
            module._buffers[name] = buffer
        for module, training in self._modes.items():
            if module.training != training:
                module.training = training
        for replica, gradients, buffers in self._replicas:
            replica.require_backward_grad_sync, replica.require_forward_param_sync = gradients, buffers
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


@contextmanager
def _forward_passes(visit: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within, every module that runs is visited before it does."""
    handle = register_module_forward_pre_hook(lambda module, args: visit(module))
    try:
        with warnings.catch_warnings():
            # that a compiled module calls the hook twice does no harm: it visits once
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
            yield
    finally:
        handle.remove()


@contextmanager
def _mode_changes(visit: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within, every module is visited before ``train()`` or ``eval()`` changes it, which no hook of torch tells."""
    original = nn.Module.train

    def train(module: nn.Module, mode: bool = True) -> nn.Module:
        visit(module)
        return original(module, mode)

    nn.Module.train = train  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.train = original  # type: ignore[method-assign]


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
def isolated_rng(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, random numbers may be drawn; torch's streams on the CPU and the tensors' devices stand still."""
    devices = _accelerators(tensors)
    if not devices:
        with torch.random.fork_rng(devices=[]):
            yield
        return
    kind = next(iter(devices)).type
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type=kind):
        yield


def rng_states(tensors: Iterable[Tensor]) -> RngStates:
    """The states of torch's streams on the CPU and the tensors' devices, as they are now."""
    on_devices = {device: torch.get_device_module(device).get_rng_state(device) for device in _accelerators(tensors)}
    return torch.random.get_rng_state(), on_devices


def set_rng_states(streams: RngStates) -> None:
    """Put the streams back to these states; within :func:`isolated_rng` nobody outside notices."""
    on_cpu, on_devices = streams
    torch.random.set_rng_state(on_cpu)
    for device, state in on_devices.items():
        torch.get_device_module(device).set_rng_state(state, device)


def _accelerators(tensors: Iterable[Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
