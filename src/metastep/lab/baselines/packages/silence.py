"""Packages that print what they do, and warn of their own code; a run's output is not theirs."""

import contextlib
import io
import warnings
from collections.abc import Iterator


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
