"""Mistakes made with an adapter: what they need, and how each is checked."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import learned, network

import metastep as ms

#: Makes one mistake, in a folder.
Mistake = Callable[[Path], None]
#: The error that each has to raise, and what its message matches.
Table = Mapping[Mistake, tuple[type[Exception], str]]


def sgd() -> torch.optim.Optimizer:
    """An optimizer of a small network."""
    return torch.optim.SGD(network().parameters(), lr=0.1)


def rate(optimizer: torch.optim.Optimizer | None = None) -> ms.LearnedLR:
    """A LearnedLR."""
    return ms.LearnedLR(optimizer or sgd(), learned(), num_classes=10)


def rows(tables: Mapping[str, Table]) -> list[Any]:
    """The parameters ``library``, ``wrong``, ``kind``, ``message`` of tests, from a table for each library."""
    return [
        pytest.param(library, wrong, kind, message, id=wrong.__name__)
        for library, table in tables.items()
        for wrong, (kind, message) in table.items()
    ]


def check(library: str, wrong: Mistake, kind: type[Exception], message: str, folder: Path, *, ours: bool) -> None:
    """Make the mistake: its error matches, and is one line that ends in a full stop if it is ours."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra [{library}]")
    with pytest.raises(kind, match=message) as caught:
        wrong(folder)
    if ours:
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
