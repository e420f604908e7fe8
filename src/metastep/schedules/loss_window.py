"""The losses observed between two optimizer steps, averaged without holding on to a graph."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def checked_number(name: str, value: float | Tensor) -> float | Tensor:
    """Return one real number: a float, or on an accelerator the tensor without its graph, which is not read.

    Raises:
        TypeError: if it is no real number or floating-point tensor.
        ValueError: if it has more than one element.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must have one element, got shape {tuple(value.shape)}; observe its mean: {name}.mean()."
            )
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}.")
        return value.item() if value.is_cpu else value.detach()
    if isinstance(value, bool) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) > 0:
        raise TypeError(f"{name} must be a float or a one-element tensor, got {type(value).__name__}.")
    return float(value)


class LossWindow:
    """Averages the finite losses of one window; counts the others.

    Python floats and CPU tensors are summed on the host. Tensors on an accelerator are summed there, in place, so that
    observing one neither waits for the device nor breaks the capture of a CUDA graph.

    Args:
        last: stands for the mean of a window without a finite loss until there was one with; NaN if unknown.
    """

    def __init__(self, last: float = math.nan) -> None:
        self.calls = 0  # in the open window
        self._sum, self._count = 0.0, 0
        self.ignored_on_host = 0  # non-finite losses so far, without those that a device counted
        self._last = last
        self._device: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # sum, count, ignored, last: 0-d float32
        self._device_in_use = False  # in the open window

    def add(self, loss: float | Tensor) -> None:
        """Observe one loss.

        Raises:
            TypeError: if it is no real number or floating-point tensor.
            ValueError: if it has more than one element.
        """
        loss = checked_number("loss", loss)
        if isinstance(loss, Tensor):
            self._add_on_device(loss)
            return
        self.calls += 1
        if math.isfinite(loss):
            self._sum += loss
            self._count += 1
        else:
            self.ignored_on_host += 1

    def _add_on_device(self, loss: Tensor) -> None:
        loss = loss.reshape(()).float()
        total, count, ignored, _ = self._kept_on(loss.device)
        finite = loss.isfinite()
        total += torch.where(finite, loss, 0.0)
        count += finite
        ignored += ~finite
        self.calls += 1
        self._device_in_use = True

    def _kept_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._device is None or self._device[0].device != device:
            self.ignored_on_host = self.ignored
            zero = torch.zeros((), dtype=torch.float32, device=device)
            self._device = (zero, zero.clone(), zero.clone(), torch.full_like(zero, self._last))
        return self._device

    def share(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Put the losses that all ranks observed in the place of this one's, so that the mean is that of all of them.

        Args:
            sum_over_ranks: turns (3,) float64 of this rank (the sum of its finite losses, how many they are, how many
                losses it observed) into those of all; on which device it answers decides where the mean will be.
        """
        if self._device_in_use and self._device is not None:
            total, count = self._device[0] + self._sum, self._device[1] + self._count
            mine = torch.stack([total, count, torch.full_like(total, self.calls)]).double()
        else:
            mine = torch.tensor([self._sum, self._count, self.calls], dtype=torch.float64)
        everyones = sum_over_ranks(mine)
        others = everyones - mine.to(everyones.device)
        calls = self.calls or int(everyones[2])  # asked only by a rank that observed nothing
        self.discard()
        self.calls = calls
        if everyones.is_cpu:
            self._sum, self._count = float(everyones[0]), int(everyones[1])
            self.ignored_on_host += int(others[2] - others[1])
        else:
            kept = self._kept_on(everyones.device)
            kept[0].copy_(everyones[0])
            kept[1].copy_(everyones[1])
            kept[2].add_(others[2] - others[1])
            self._device_in_use = True

    @property
    def has_finite(self) -> bool:
        """Whether the open window has a finite loss; one on a device is taken for finite."""
        return self._count > 0 or self._device_in_use

    @property
    def last(self) -> float:
        """The mean of the last window with a finite loss, NaN if unknown (reads the device, if there is one)."""
        return self._last if self._device is None else float(self._device[3])

    @last.setter
    def last(self, mean: float) -> None:
        self._last = mean
        if self._device is not None:
            self._device[3].fill_(mean)

    def flush(self) -> float | Tensor:
        """Return the mean of the window and start the next one.

        A window without a finite loss repeats the mean before it; NaN if there was none. The mean is a float, or a 0-d
        float32 tensor on an accelerator if a loss of this window was there.
        """
        mean: float | Tensor
        if self._device_in_use and self._device is not None:
            total, count, _, last = self._device
            total += self._sum
            count += self._count
            last.copy_(torch.where(count > 0, total / count.clamp(min=1), last))
            mean = last.clone()
        else:
            if self._count:
                self._last = self._sum / self._count
            mean = self._last
        self.discard()
        return mean

    def discard(self) -> None:
        """Forget the losses of the open window."""
        self.calls, self._sum, self._count, self._device_in_use = 0, 0.0, 0, False
        if self._device is not None:
            for part in (0, 1):
                self._device[part].zero_()

    @property
    def ignored(self) -> int:
        """Non-finite losses so far (reads the device, if there is one)."""
        return self.ignored_on_host + (int(self._device[2].item()) if self._device is not None else 0)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; reads the device, if there is one."""
        state = {"calls": self.calls, "sum": self._sum, "count": self._count, "last": self._last}
        if self._device is not None:
            total, count, _, last = (value.item() for value in self._device)
            state = {**state, "sum": self._sum + total, "count": self._count + int(count), "last": last}
        return {**state, "ignored": self.ignored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an open window; what was on a device goes on from the host."""
        self.calls, self._sum, self._count = int(state["calls"]), float(state["sum"]), int(state["count"])
        self.ignored_on_host, self._last = int(state["ignored"]), float(state["last"])
        self._device, self._device_in_use = None, False
