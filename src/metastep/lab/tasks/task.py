"""A task: data, a network and a loss, knowing nothing of the methods that will be tried on it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from metastep.lab.tasks.batches import Batch, Batches
from metastep.lab.tasks.data import TaskData
from metastep.lab.tasks.splits import DataOptions, LabelNoise

Kind = Literal["classification", "language", "regression", "reconstruction"]
Metric = Literal["accuracy", "perplexity", "r2"]

#: The metric of each kind. Accuracy and r2 are better the higher, perplexity the lower.
METRICS: Final = MappingProxyType[Kind, Metric](
    {"classification": "accuracy", "language": "perplexity", "regression": "r2", "reconstruction": "r2"}
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is known of a task before its data are read: one entry of the table.

    Args:
        name: "data/network".
        kind: "classification", "language", "regression" or "reconstruction".
        summary: One line for lists.
        network: Makes the network, given the number of its outputs: the classes, where there are any.
        pretrained: Whether the network was trained on other data before; `network` then also takes `data_dir`, where
            those data are.
        read: Reads and splits the data.
        batch_size: Examples a step; for text the number of parallel stretches.
        eval_batch_size: The same in evaluations.
        total_steps: A sensible length of a run on two CPU cores, in optimizer steps.
        optimizer: Name of a torch optimizer, in lower case.
        optimizer_options: Its options besides the learning rate.
        learning_rate: A sensible initial rate for closed-form schedules.
        clip_norm: Bound on the norm of the whole gradient; None: no clipping.
        inner_valid: Default size of that split; None: a tenth of the examples.
        outer_valid: Default size of that split; None: a tenth of the examples.
        label_noise: Of the training labels, if noise is what the task is about.
    """

    name: str
    kind: Kind = "classification"
    summary: str
    network: Callable[..., nn.Module] = field(repr=False)
    read: Callable[[DataOptions], TaskData] = field(repr=False)
    batch_size: int
    eval_batch_size: int = 500
    total_steps: int
    optimizer: str
    optimizer_options: Mapping[str, Any]
    learning_rate: float
    clip_norm: float | None = None
    inner_valid: int | None
    outer_valid: int | None
    label_noise: LabelNoise | None = None
    pretrained: bool = False


@dataclass(frozen=True, kw_only=True)
class Task(Recipe):
    """Data in four named splits, a network, a loss, and sensible settings for training; see `Recipe`.

    "train" is for the weights, "inner_valid" for meta-gradients, "outer_valid" for tuning and curves, "test"
    for one reading at the end.

    Example:
        >>> import torch
        >>> from metastep.lab.tasks import load_task
        >>> task = load_task("digits/mlp")
        >>> _ = torch.manual_seed(0)
        >>> model = task.make_model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate, **task.optimizer_options)
        >>> stream = task.batches("train", seed=0)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     task.loss(model, next(stream)).backward()
        ...     optimizer.step()
        >>> task.evaluate(model, "outer_valid")["accuracy"] > 0.8
        True
    """

    data: TaskData = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, or size of the vocabulary; where numbers are predicted, 3.

        There it is what a learned schedule is to take the loss for: targets are standardised, so the loss of a
        network that knows nothing is about 1, as is the cross-entropy of 3 classes that it cannot tell apart.
        """
        return self.data.num_classes

    @property
    def text(self) -> bool:
        """Whether this is a language model."""
        return self.kind == "language"

    @property
    def metric(self) -> Metric:
        """What is measured beside the loss: "accuracy", "perplexity" or "r2"."""
        return METRICS[self.kind]

    @property
    def notes(self) -> str:
        """What data were read."""
        return self.data.notes

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples (tokens, for text) of every split."""
        return self.data.sizes

    def make_model(self) -> nn.Module:
        """Make a new network: what is not pretrained is drawn from torch's global generator."""
        return self.network(self.data.network_outputs)

    def batches(
        self,
        split: str,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
    ) -> Batches:
        """Give an endless stream of batches over a split.

        Images are shuffled anew every epoch, and the last batch of an epoch may be smaller. Text is read in
        order from its beginning, so there the seed changes nothing.

        Args:
            split: "train", "inner_valid", "outer_valid" or "test".
            batch_size: Examples a batch, >= 1; None: the task's.
            seed: Seeds the stream's own generator.
            device: Where the batches are made; images stay there as uint8.
            augment: Crop and flip at random; None: on train and inner_valid, if the task has augmentation.

        Raises:
            ValueError: If the split is unknown or empty, the batch size is not positive, or augmentation is
                asked of a task that has none.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        self._check(split, batch_size)
        if augment and not self.data.augments:
            raise ValueError(f"augment must be None or False for {self.name}, got True; its data have none.")
        if augment is None:
            augment = self.data.augments and split in ("train", "inner_valid")
        where = torch.device(device)
        return self.data.stream(split, batch_size=batch_size, seed=seed, device=where, augment=augment, shuffle=True)

    def steps_per_epoch(self, batch_size: int | None = None) -> int:
        """Give the number of steps of one pass over the training split; the last, smaller batch counts."""
        batch_size = self.batch_size if batch_size is None else batch_size
        self._check("train", batch_size)
        return self.data.steps_per_epoch("train", batch_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the mean cross-entropy of a batch in nats, or its mean squared error: a 0-d tensor with a graph.

        A recurrent network starts from the state that entered the batch, however often this is asked, and
        leaves its last state, detached, for the next batch of the stream.
        """
        return mean_loss(self.kind, _outputs(model, batch), batch.targets)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        batch_size: int | None = None,
        max_batches: int | None = None,
        device: torch.device | str = "cpu",
    ) -> dict[str, float]:
        """Give the mean loss and the metric over a split in eval mode.

        Neither the modules' train/eval flags nor torch's global generator are changed; nothing is augmented.

        Args:
            model: The network, on `device`.
            split: The split.
            batch_size: Examples a batch; None: the task's for evaluations.
            max_batches: Look only at the first so many batches; None: at all.
            device: Where the model is.

        Returns:
            {"loss", "accuracy"} with the accuracy in [0, 1], or {"loss", "perplexity"}, or {"loss", "r2"} with
            the share of the targets' variance that the network explains, at most 1.

        Raises:
            ValueError: If the split is unknown or empty, or a size is not positive.
        """
        batch_size = self.eval_batch_size if batch_size is None else batch_size
        self._check(split, batch_size)
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches must be >= 1 or None, got {max_batches}.")
        steps = self.data.steps_per_epoch(split, batch_size)
        steps = steps if max_batches is None else min(steps, max_batches)
        stream = self.data.stream(
            split, batch_size=batch_size, seed=0, device=torch.device(device), augment=False, shuffle=False
        )
        training = [(module, module.training) for module in model.modules()]
        sums = tally(self.kind)
        try:
            model.eval()
            with torch.no_grad():
                for batch in islice(stream, steps):
                    sums.add(_outputs(model, batch), batch.targets)
        finally:
            for module, flag in training:
                module.training = flag
        return sums.scores()

    def _check(self, split: str, batch_size: int) -> None:
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {split!r}.")
        if self.splits[split] == 0:
            raise ValueError(f"split {split!r} of {self.name} is empty; load the task with {split} > 0.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}.")


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Run the network: (batch, outputs), or (batch, time, classes) for text."""
    if batch.carry is None:
        outputs: Tensor = model(batch.inputs)
        return outputs
    outputs, state = model(batch.inputs, batch.carry.entering)
    batch.carry.leaving = tuple(part.detach() for part in state)
    return outputs


# What the kinds of tasks differ in: the loss, the metric beside it, and how both are summed over a split.


def mean_loss(kind: Kind, outputs: Tensor, targets: Tensor) -> Tensor:
    """Give the mean cross-entropy in nats, or the mean squared error; 0-d.

    Args:
        kind: Of the task.
        outputs: (..., classes), or of the targets' shape.
        targets: (...) int64 classes, or numbers.
    """
    if kind in ("classification", "language"):
        return cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return mse_loss(outputs, targets)


class Tally(ABC):
    """Sums over the batches of an evaluation; they stay on the device until the result is asked for."""

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch in."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Give "loss" and the metric."""


def tally(kind: Kind) -> Tally:
    """Give an empty tally for tasks of a kind."""
    return _Classes(text=kind == "language") if kind in ("classification", "language") else _Numbers()


class _Classes(Tally):
    def __init__(self, *, text: bool) -> None:
        self._text = text
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._losses.append(cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum"))
        self._correct.append((outputs.argmax(-1) == targets).sum())
        self._count += targets.numel()

    def scores(self) -> dict[str, float]:
        loss = torch.stack(self._losses).cpu().double().sum() / self._count
        if self._text:
            return {"loss": loss.item(), "perplexity": loss.exp().item()}
        return {"loss": loss.item(), "accuracy": torch.stack(self._correct).sum().item() / self._count}


class _Numbers(Tally):
    """r2 = 1 - sum |y - f|^2 / sum |y - mean y|^2, the mean taken of each output by itself."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._examples = self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._errors.append((outputs - targets).square().sum())
        self._sums.append(targets.sum(0))
        self._squares.append(targets.square().sum())
        self._examples += len(targets)
        self._count += targets.numel()

    def scores(self) -> dict[str, float]:
        errors, squares = (torch.stack(parts).cpu().double().sum().item() for parts in (self._errors, self._squares))
        sums = torch.stack(self._sums).cpu().double().sum(0)
        spread = squares - sums.square().sum().item() / self._examples
        return {"loss": errors / self._count, "r2": 1 - errors / spread if spread > 0 else math.nan}
