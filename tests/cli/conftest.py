import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from metastep.cli import main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which must be one JSON object."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def metastep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable[..., Result]]:
    """Run ``metastep ARGUMENTS`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METASTEP_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["metastep", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(ended.value.code, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)
