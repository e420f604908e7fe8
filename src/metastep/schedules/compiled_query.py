"""What a schedule computes in each step on the CPU, in one call of compiled code: `compiled_query.cpp`.

Small operations of torch and numpy take longer to call than to compute. Without a compiler they are used all the same.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metastep.compiled import library

SOURCE = Path(__file__).with_name("compiled_query.cpp")
#: A sum is taken in the order that suits the processor where the source says so.
FLAGS = ("-fopenmp-simd",)
#: Of dtypes for which there is code.
_NAMES = {"float32": "float", "float64": "double"}

Array = npt.NDArray[Any]
Pointer = ctypes.c_void_p


class CCells(ctypes.Structure):
    """`Cells` of compiled_query.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "bottleneck", "inputs")),
        *((name, Pointer) for name in ("into", "gates", "output")),
        ("bias", ctypes.c_double),
    ]


class CSamples(ctypes.Structure):
    """`Samples` of compiled_query.cpp."""

    _fields_ = [
        ("tensors", ctypes.c_int64),
        *((name, Pointer) for name in ("data", "stretches", "length", "stride", "weight")),
    ]


def _function(name: str, dtype: str, *arguments: Any) -> Callable[..., float] | None:
    """A function of the library for a dtype; None without a compiler, or for another dtype."""
    if dtype not in _NAMES or (found := library(SOURCE, *FLAGS)) is None:
        return None
    function = found[f"metastep_{name}_{_NAMES[dtype]}"]  # by index: each a new object, with types of its own
    function.argtypes, function.restype = arguments, ctypes.c_double
    return function


class CompiledCells:
    """A query of an MLR-SNet.

    Args:
        function: the library's.
        layers: the matrices of each layer (see ``mlrsnet._PackedCell``), by columns: (2B + 1, H + I + 1) and
            (4H, 2B + 1).
        output: the weights of the output, (H,).
        bias: that of the output.

    Attributes:
        logit: from a loss and the addresses of a state and of the next, (L, 2, H) each, which it fills, to the logit of
            alpha; the library's function itself, because a call of Python costs a part of what it takes.
    """

    def __init__(
        self, function: Callable[..., float], layers: Sequence[tuple[Array, Array]], output: Array, bias: float
    ) -> None:
        (wide, columns), hidden = layers[0][0].shape, len(output)
        matrices = [(Pointer * len(layers))(*(pair[k].ctypes.data for pair in layers)) for k in (0, 1)]
        cells = CCells(
            *(len(layers), hidden, (wide - 1) // 2, columns - hidden - 1),
            *(*map(ctypes.addressof, matrices), output.ctypes.data, bias),
        )
        self.logit: Callable[[float, int, int], float] = functools.partial(function, ctypes.addressof(cells))
        self._kept = layers, output, matrices, cells  # what the addresses are of

    @classmethod
    def of(cls, layers: Sequence[tuple[Array, Array]], output: Array, bias: float) -> "CompiledCells | None":
        """None without a compiler, or for numbers that are neither float32 nor float64."""
        function = _function("logit", output.dtype.name, Pointer, ctypes.c_double, Pointer, Pointer)
        return None if function is None else cls(function, layers, output, bias)


class SquareOfGradient:
    """The weighted sum of the squares of sampled gradients, as they are now.

    Args:
        samples: dense parameters; of the gradient of each, how many stretches of numbers are in the sample, of which
            length, how far from one to the next, and how many numbers each of theirs stands for. None: there is no sum.
        idle: other parameters, which have no gradient now.
    """

    def __init__(
        self, samples: Sequence[tuple[nn.Parameter, int, int, int, float]], idle: Sequence[nn.Parameter]
    ) -> None:
        self._live, self._idle = [(parameter, parameter.numel()) for parameter, *_ in samples], list(idle)
        kinds: set[tuple[torch.dtype | None, bool]] = {(parameter.dtype, parameter.is_cpu) for parameter, *_ in samples}
        self._dtype, on_cpu = kinds.pop() if len(kinds) == 1 else (None, False)
        name = str(self._dtype).removeprefix("torch.")
        self._function = _function("square", name, Pointer) if on_cpu else None
        self._data = (Pointer * len(samples))()
        kinds_of_numbers = (np.int64, np.int64, np.int64, np.float64)
        columns = [np.array([s[1 + k] for s in samples], kind) for k, kind in enumerate(kinds_of_numbers)]
        self._c = CSamples(len(samples), ctypes.addressof(self._data), *(column.ctypes.data for column in columns))
        self._place, self._columns = ctypes.addressof(self._c), columns

    def __reduce__(self) -> tuple[type["SquareOfGradient"], tuple[Any, ...]]:
        return SquareOfGradient, ([], [])  # addresses are of one process

    def __call__(self) -> float | None:
        """The sum; None if it cannot be had this way now."""
        if self._function is None:
            return None
        for parameter in self._idle:
            if parameter.grad is not None:
                return None
        data, dtype = self._data, self._dtype
        for place, (parameter, size) in enumerate(self._live):
            gradient = parameter.grad
            if type(gradient) is not Tensor or gradient.dtype is not dtype or gradient.layout is not torch.strided:
                return None
            if gradient.numel() != size or not gradient.is_contiguous():
                return None
            data[place] = address = gradient.data_ptr()
            if not address:  # no memory of its own: one number or zeros that stand for all
                return None
        return self._function(self._place)
