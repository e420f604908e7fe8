"""What the reader of a page has already: the names that its code uses without making them, and what came of it.

Every page finds metastep's names, ``ms``, ``torch``, ``device``, ``tmp_path``, and a small classifier of digits:
``model``, ``criterion``, ``loader``, ``optimizer``, ``schedule`` (learned, random weights), ``x_valid``, ``y_valid``.
Some find more; some blocks are made shorter; some pages are alternatives, each block of which begins anew.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.integrations.digits import digits, learned, network
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms

Names = dict[str, Any]

#: In any page: long runs made short.
SHORTER = {"every=100": "every=2", "task.total_steps": "200"}
#: Pages whose blocks are alternatives.
ALTERNATIVES = {"README.md"}
#: The head of a loop that a page has shown and leaves out as "..." at the margin.
_LOOP = "for x, y in loader:\n    loss = criterion(model(x), y)\n    optimizer.zero_grad()\n    loss.backward()\n"
_LEFT_OUT = re.compile(r"^\.\.\.\n(?=[ ]+\S)", re.MULTILINE)


def runnable(code: str) -> str:
    """The code of a block, with what it leaves out and without its length."""
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    code = _LEFT_OUT.sub(_LOOP, code)
    return re.sub(r"^\.\.\.\n", "", code, flags=re.MULTILINE)


def prelude(tmp_path: Path) -> Names:
    """The names of every page."""
    model = network()
    x_valid, y_valid = digits(32, start=192)
    public = {name: getattr(ms, name) for name in ms.__all__}
    return {
        **public, "__name__": "page", "ms": ms, "metastep": ms, "torch": torch, "device": "cpu", "tmp_path": tmp_path,
        "model": model, "schedule": learned(), "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": torch.nn.functional.cross_entropy, "x_valid": x_valid, "y_valid": y_valid, "xv": x_valid,
        "yv": y_valid, "weights": [model[0].weight, model[2].weight],
        "loader": DataLoader(TensorDataset(*digits(192)), batch_size=16),
    }  # fmt: skip


def _readme(names: Names) -> None:
    ms.save_schedule(ms.MLRSNet(), _parents("demo/learned/schedule.safetensors"))


def _optimizers(names: Names) -> None:
    layers = [torch.nn.Linear(64, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 10, bias=False)]
    names["model"] = torch.nn.Sequential(*layers)  # Muon takes matrices alone


def _tasks(names: Names) -> None:
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    for animal in ("cat", "dog"):
        for number in range(610):
            picture = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(_parents(f"photos/{animal}/{number}.png")), picture)


def _lightning(names: Names) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    data = TensorDataset(*digits(64)), TensorDataset(*digits(32, start=64))
    names["module"] = Module()
    names["datamodule"] = pl.LightningDataModule.from_datasets(data[0], val_dataset=data[1], batch_size=8)


def _transformers(names: Names) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, n_positions=8))
    names |= {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "vocabulary": 9,
        "dataset": [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8,
        "arguments": TrainingArguments("out", max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True),
    }  # fmt: skip


def _after_plain(names: Names) -> None:
    assert names["lr"].steps == 12
    assert names["learner"].meta_updates == 6


def _after_lightning(names: Names) -> None:
    assert names["callback"].learner.meta_updates == 4
    assert ms.load_schedule("learned.safetensors").state_dict().keys() == learned().state_dict().keys()


def _after_transformers(names: Names) -> None:
    names["trainer"].train()
    assert names["trainer"].lr_scheduler.lr.steps == 3


def _after_accelerate(names: Names) -> None:
    assert names["lr"].steps == 3


def _after_start(names: Names) -> None:
    start_low = [names["train_with"](make, 0.001)[0] for make in (torch.optim.SGD, ms.HyperSGD)]
    assert start_low[1] < start_low[0] / 2  # what the page says


def _after_tasks(names: Names) -> None:
    assert names["task"].splits == {"train": 20, "inner_valid": 200, "outer_valid": 500, "test": 500}
    names["task"].loss(names["task"].make_model(), next(names["task"].batches("train"))).backward()


def _parents(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


#: Beside the prelude, what a page's reader has; runs in the folder in which the page will.
BEFORE: dict[str, Callable[[Names], None]] = {
    "README.md": _readme,
    "docs/optimizers.md": _optimizers,
    "docs/tasks.md": _tasks,
    "docs/guides/lightning.md": _lightning,
    "docs/guides/transformers.md": _transformers,
}
#: What holds when a page's code has run.
AFTER: dict[str, Callable[[Names], None]] = {
    "docs/get-started.md": _after_start,
    "docs/tasks.md": _after_tasks,
    "docs/guides/plain-pytorch.md": _after_plain,
    "docs/guides/lightning.md": _after_lightning,
    "docs/guides/transformers.md": _after_transformers,
    "docs/guides/accelerate.md": _after_accelerate,
}
