"""Packages that print what they do; a run's standard output is not theirs."""

import contextlib
import io
from collections.abc import Iterator


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within, what is printed goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
