"""Optimizers of other packages, each imported only when it is made.

What every one of them is taught: to say which rate it applied (``applied_rate``), to keep all that a resumed run needs
in its ``state_dict``, to print nothing, and, where it averages its iterates, to show the average without a trace
(``averaged``).
"""

import contextlib
import io
import warnings
from collections.abc import Iterator

import torch
from torch.optim import Optimizer


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within, what is printed goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Within, nothing is printed and no warning is shown, or raised where warnings are errors.

    What a package says while it is imported is about its own code, such as the escape sequences that Python 3.12 warns
    of whenever it compiles ``dog``: whoever compares methods can do nothing about it.
    """
    with silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def restored(optimizer: Optimizer) -> Iterator[None]:
    """Within, the parameters may be changed; afterwards they are as before, bit for bit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
