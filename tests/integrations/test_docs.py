"""The examples of docs/integrations.md and those in examples/ run."""

import doctest
import importlib.util
import math
import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import digits, learned, network
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms

ROOT = Path(__file__).parents[2]
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "integrations.md").read_text("utf-8"), re.M | re.S)
)
SNIPPETS = {
    f"{title} {number}": text
    for title, body in SECTIONS.items()
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", body, re.DOTALL))
}


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra [{library}]")


def prelude() -> dict:
    """The names that a reader has already."""
    model = network()
    x_valid, y_valid = digits(32, start=192)
    return {
        "ms": ms, "torch": torch, "device": "cpu", "model": model, "schedule": learned(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "criterion": torch.nn.functional.cross_entropy,
        "loader": DataLoader(TensorDataset(*digits(192)), batch_size=16), "x_valid": x_valid, "y_valid": y_valid,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainers' advice about workers, folders, devices
        yield


@pytest.mark.parametrize("number", [0, 1])
def test_the_loops_of_ones_own_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    names = prelude()
    exec(SNIPPETS[f"A loop of your own {number}"], names)
    assert names["lr"].steps == (12 if number else 3)


def test_the_lightning_snippets_run() -> None:
    needs("lightning")
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    names = prelude()
    names["module"], names["datamodule"] = Module(), pl.LightningDataModule.from_datasets(
        TensorDataset(*digits(64)), val_dataset=TensorDataset(*digits(32, start=64)), batch_size=8
    )  # fmt: skip
    exec(SNIPPETS["Lightning 0"], names)
    assert names["callback"].lr.steps == 2
    exec(SNIPPETS["Lightning 1"].replace("every=100", "every=2"), names)
    assert names["callback"].learner.meta_updates == 4
    assert ms.load_schedule("learned.safetensors").state_dict().keys() == learned().state_dict().keys()


@pytest.mark.parametrize("number", [0, 1])
def test_the_transformers_snippets_run(number: int) -> None:
    needs("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    from metastep.integrations import AsScheduler
    from metastep.integrations.transformers import LearnedLRTrainer

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, n_positions=8))
    names = {
        **prelude(), "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "vocabulary": 9,
        "dataset": [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8, "AsScheduler": AsScheduler,
        "arguments": TrainingArguments("out", max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True),
        "LearnedLRTrainer": LearnedLRTrainer,
    }  # fmt: skip
    exec(SNIPPETS[f"Transformers {number}"], names)
    if number == 1:
        names["trainer"].train()
    assert names["trainer"].lr_scheduler.lr.steps == 3


def test_the_accelerate_snippet_runs() -> None:
    needs("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    names = prelude()
    exec(SNIPPETS["Accelerate 0"], names)
    assert names["lr"].steps == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
