"""``metastep new``: a small project with a model and data of one's own, which runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metastep.cli.display import say
from metastep.files import write_atomically

_MODEL = '''"""The network. metastep calls make_model() for every run, so it makes a new network each time."""

import torch
from torch import nn


class Net(nn.Module):
    """A perceptron with two hidden layers; put your own network here."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs (batch, 2) to one number a class, (batch, 3)."""
        return self.layers(inputs)


def make_model() -> nn.Module:
    return Net()
'''

_DATA = '''"""The data. metastep calls make_data() once; what it does not give is held out from "train"."""

import math

import torch


def make_data():
    """Points on three spirals, drawn with a constant seed.

    Each split is a pair of tensors (inputs, targets), a torch data set, or a DataLoader. Targets are int64 classes, or
    floating-point numbers to predict. Give "test" and "valid", too, if you have them.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    radius = torch.rand(3000, generator=generator)
    angle = 4 * radius + 2 * math.pi * labels / 3 + 0.1 * torch.randn(3000, generator=generator)
    points = torch.stack((radius * angle.cos(), radius * angle.sin()), 1) / 0.4
    return {"train": (points, labels)}
'''

_README = """# {name}

`model.py` has the network, `data.py` the data. Type these in this folder:

```
metastep train --model model:make_model --data data:make_data --steps 1000
metastep compare --model model:make_model --data data:make_data --steps 500
metastep train --help
```

`train` finds the learning rate by itself. Results are in `runs/`. `compare` writes a page that compares schedules.
`--data` can also be a folder of images (CLASS/*.png) or a text file, if the network takes those.
"""


def new(
    folder: Annotated[Path, typer.Argument(help="Folder to make, such as my-project.", metavar="FOLDER")],
) -> None:
    """Make a small project: a model and data of your own, ready to train."""
    if folder.exists():
        raise ValueError(f"FOLDER must be a new one, got {folder}, which exists; take another name.")
    folder.mkdir(parents=True)
    for name, text in {
        "model.py": _MODEL,
        "data.py": _DATA,
        "README.md": _README.format(name=folder.resolve().name),
    }.items():
        write_atomically(folder / name, text)
    say(f"{folder} has model.py, data.py and README.md. Now type:")
    say(f"  cd {folder}")
    say("  metastep train --model model:make_model --data data:make_data")
