"""Tasks whose networks were pretrained on other data: with a new output layer, whole, or with low-rank adapters.

The pretraining is the same in every process: it has a seed and a random stream of its own and runs on one thread. A
process does it once, for all runs in it; every run starts from a copy.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from metastep.core.isolation import isolated_rng
from metastep.lab.tasks.data import TaskData
from metastep.lab.tasks.datasets.bundled import load_digits
from metastep.lab.tasks.datasets.image_sets import CIFAR10
from metastep.lab.tasks.datasets.language import read_shakespeare_windows
from metastep.lab.tasks.images import ImageData, ImageStore
from metastep.lab.tasks.networks.feedforward import convnet
from metastep.lab.tasks.networks.low_rank import with_low_rank
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.sequence import TransformerLanguageModel
from metastep.lab.tasks.splits import DataOptions
from metastep.lab.tasks.task import Kind, Recipe, mean_loss

_SEED: Final = 7


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The training before a task: AdamW, whose rate goes down a straight line to zero.

    Args:
        network: Makes the network, given the number of its outputs.
        read: Reads the data; all but the test is trained on.
        kind: Of the loss.
        steps: Optimizer steps.
        batch_size: Examples a step.
        learning_rate: At the first step.
    """

    network: Callable[[int], nn.Module]
    read: Callable[[DataOptions], TaskData]
    kind: Kind = "classification"
    steps: int
    batch_size: int
    learning_rate: float


def read_turned_digits(options: DataOptions) -> ImageData:
    """Read the digits, turned by a quarter."""
    data = load_digits(options)
    stores = {split.store for split in data.splits_by_name.values()}
    turned = {store: ImageStore(store.images.rot90(1, (1, 2)).contiguous(), store.labels) for store in stores}
    splits = {name: replace(split, store=turned[split.store]) for name, split in data.splits_by_name.items()}
    return replace(data, splits_by_name=splits, notes=f"{data.notes}, turned by a quarter")


_FIRST, _SECOND = range(5), range(5, 10)  # classes
_CIFAR10_AFTER: Final = replace(CIFAR10, classes=_SECOND, test_size=2000)
_WINDOWS: Final = partial(read_shakespeare_windows, length=32, test=500)

#: By name.
PRETRAININGS: Final[dict[str, Pretraining]] = {
    "digits, turned": Pretraining(
        network=partial(resnet, widths=(8, 16, 32), blocks=1, projection=False, channels=1),
        read=read_turned_digits,
        steps=300,
        batch_size=32,
        learning_rate=3e-3,
    ),
    "CIFAR-10, classes 0 to 4": Pretraining(
        network=partial(convnet, channels=3, widths=(16, 32, 64)),
        read=replace(CIFAR10, classes=_FIRST),
        steps=400,
        batch_size=32,
        learning_rate=3e-3,
    ),
    "Shakespeare, first half": Pretraining(
        network=partial(TransformerLanguageModel, width=64, layers=2, heads=4, context=32),
        read=partial(_WINDOWS, half=0),
        kind="language",
        steps=800,
        batch_size=16,
        learning_rate=3e-3,
    ),
}


@cache
def pretrained(name: str, data_dir: Path | str | None = None) -> nn.Module:
    """Pretrain a network, once in a process; torch's random streams and number of threads stay.

    Args:
        name: Of `PRETRAININGS`.
        data_dir: Where to look for files.

    Returns:
        The network, in the mode of training. It is shared: copy it before it is changed.

    Raises:
        MissingData: If the files are not there.
    """
    before = PRETRAININGS[name]
    data = before.read(DataOptions(inner_valid=0, outer_valid=0, data_dir=data_dir))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # sums over several threads differ in the last digits
        with isolated_rng(()), torch.enable_grad():
            torch.default_generator.manual_seed(_SEED)
            return _trained(before, data)
    finally:
        torch.set_num_threads(threads)


def _trained(before: Pretraining, data: TaskData) -> nn.Module:
    network = before.network(data.network_outputs).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=before.learning_rate, weight_decay=0.01)
    line = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / before.steps)
    stream = data.stream(
        "train",
        batch_size=before.batch_size,
        seed=_SEED,
        device=torch.device("cpu"),
        augment=data.augments,
        shuffle=True,
    )
    for batch in islice(stream, before.steps):
        loss = mean_loss(before.kind, network(batch.inputs), batch.targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        line.step()
    optimizer.zero_grad()
    return network


def with_new_head(outputs: int, *, before: str, data_dir: Path | str | None = None) -> nn.Module:
    """Give a copy of a pretrained network whose last layer is new, drawn from torch's global generator.

    Args:
        outputs: Of the new layer.
        before: The name of the pretraining.
        data_dir: Where the data of the pretraining are.
    """
    network = deepcopy(pretrained(before, data_dir))
    assert isinstance(network, nn.Sequential)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    network[-1] = nn.Linear(last.in_features, outputs)
    return network


def as_it_is(outputs: int, *, before: str, data_dir: Path | str | None = None) -> nn.Module:
    """Give a copy of a pretrained network; see `with_new_head`."""
    del outputs  # the vocabulary is the same
    return deepcopy(pretrained(before, data_dir))


def with_adapters(outputs: int, *, before: str, rank: int, data_dir: Path | str | None = None) -> nn.Module:
    """Give a frozen copy of a pretrained network with low-rank adapters; see `with_new_head`, `with_low_rank`."""
    return with_low_rank(as_it_is(outputs, before=before, data_dir=data_dir), rank=rank, alpha=2.0 * rank)


_SETTINGS: Final[dict[str, Any]] = {
    "pretrained": True,
    "batch_size": 32,
    "optimizer": "adamw",
    "optimizer_options": {"weight_decay": 0.01},
}
_TEXT: Final[dict[str, Any]] = {
    **_SETTINGS,
    "kind": "language",
    "read": partial(_WINDOWS, half=1),
    "batch_size": 16,
    "eval_batch_size": 100,
    "clip_norm": 1.0,
    "inner_valid": 300,
    "outer_valid": 300,
}

TASKS: Final = (
    Recipe(
        name="fine-tune/digits-resnet",
        summary="ResNet (19 k), pretrained on digits turned by a quarter, with a new output layer, on the digits",
        network=partial(with_new_head, before="digits, turned"),
        read=load_digits,
        total_steps=300,
        learning_rate=1e-3,
        inner_valid=200,
        outer_valid=200,
        **_SETTINGS,
    ),
    Recipe(
        name="fine-tune/cifar10-convnet",
        summary="three convolutions with batch norm (24 k), pretrained on the classes 0 to 4 of CIFAR-10, "
        "with a new output layer, on its classes 5 to 9",
        network=partial(with_new_head, before="CIFAR-10, classes 0 to 4"),
        read=_CIFAR10_AFTER,
        total_steps=600,
        learning_rate=1e-3,
        inner_valid=1000,
        outer_valid=1000,
        **_SETTINGS,
    ),
    Recipe(
        name="fine-tune/shakespeare-transformer",
        summary="2-block transformer of width 64 (106 k), pretrained on the first half of Shakespeare, by "
        "characters, on the second",
        network=partial(as_it_is, before="Shakespeare, first half"),
        total_steps=800,
        learning_rate=1e-3,
        **_TEXT,
    ),
    Recipe(
        name="fine-tune/shakespeare-lora",
        summary="the same frozen transformer with low-rank adapters (LoRA) of rank 4 beside its linear layers (8.2 k)",
        network=partial(with_adapters, before="Shakespeare, first half", rank=4),
        total_steps=800,
        learning_rate=3e-3,
        **_TEXT,
    ),
)
