"""The examples in the adapters' docstrings and those in examples/ run; those of the pages do in tests/docs."""

import doctest
import importlib.util
import math
import runpy
import warnings
from pathlib import Path

import pytest
import torch

import metastep as ms

ROOT = Path(__file__).parents[2]


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra [{library}]")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainers' advice about workers, folders, devices
        yield


@pytest.mark.parametrize("name", ["scheduler", "lightning", "transformers", "accelerate"])
def test_the_docstrings_examples_run(name: str) -> None:
    if name != "scheduler":
        needs(name)
    module = importlib.import_module(f"metastep.integrations.{name}")
    known = {"torch": torch, "LearnedLR": ms.LearnedLR, "Cosine": ms.Cosine, "MLRSNet": ms.MLRSNet}
    failed, tried = doctest.testmod(module, extraglobs=known)
    assert failed == 0 < tried


EXAMPLES = {
    "plain_pytorch_amp": "torch",
    "plain_pytorch_compile": "torch",
    "lightning_digits": "lightning",
    "transformers_gpt2": "transformers",
    "accelerate_digits": "accelerate",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_and_learns(name: str) -> None:
    needs(EXAMPLES[name])
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]()
    match name:
        case "lightning_digits":
            assert all(loss < 1 for loss in found.values())
        case "transformers_gpt2":
            assert found[-1]["loss"] < found[0]["loss"] < math.log(128)
        case "plain_pytorch_compile":
            assert all(losses[-1] < losses[0] / 2 for losses in found.values())
        case _:
            assert found[-1][0] < math.log(10) / 2
            assert len({rate for _, rate in found}) > 1
