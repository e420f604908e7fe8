"""The tasks on which schedules are trained, and those that no training ever sees.

    trained on     scikit-learn's digits (as a table and as pictures), breast cancer, diabetes; Gaussian clusters,
                   random teacher networks (classes and numbers), maps to many numbers, smooth patterns in noise,
                   Markov chains of tokens;
                   linear models, perceptrons, small convnets, transformers of one and two blocks, GRUs and LSTMs
    held out       CIFAR-10, MNIST, Tiny Shakespeare, Penn Treebank and every other data set of the benchmark;
                   residual networks, vision transformers and mixers, autoencoders, embedding models

A task is a handful of numbers drawn from a seed. Lengths are log-uniform, initial rates log-uniform over the range of
the base. The data are tables that come with scikit-learn, or made from a seed. Every source gives training and
validation examples; the inputs of classes and numbers are standardised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.networks import MLP, Activation, ConvNet, Network, Norm, Recurrent, Transformer

#: What is trained on, as a schedule's file says it.
TRAINED_ON: Final = MappingProxyType(
    {
        "data": ("digits", "breast cancer", "diabetes", "clusters", "teachers", "maps", "smooth patterns", "chains"),
        "networks": ("linear model", "perceptron", "convnet", "transformer", "GRU", "LSTM"),
    }
)


# ---- data

Kind = Literal["classes", "numbers", "tokens"]
_VALID = 400
_MADE = 3000


@dataclass(frozen=True)
class Examples:
    """Examples to train on and examples to judge by.

    Attributes:
        kind: "classes" (targets int64), "numbers" (targets standardised floats) or "tokens" (inputs int64, time steps
            and one more; the targets are the inputs shifted).
        train: inputs and targets; of tokens the sequences alone.
        valid: as many tensors.
        outputs: classes, numbers to predict, or tokens in the vocabulary.
    """

    kind: Kind
    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    outputs: int


def _table(name: str) -> tuple[Tensor, Tensor]:
    try:
        import sklearn.datasets as bundled
    except ImportError as error:
        raise ImportError("training a population needs scikit-learn's tables: pip install 'metastep[data]'.") from error
    inputs, targets = getattr(bundled, f"load_{name}")(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    return torch.from_numpy(inputs).float()[order], torch.from_numpy(targets)[order]


def _split(kind: Kind, inputs: Tensor, targets: Tensor, outputs: int, valid: int = _VALID) -> Examples:
    """The first examples to judge by, the others to train on."""
    return Examples(kind, (inputs[valid:], targets[valid:]), (inputs[:valid], targets[:valid]), outputs)


@cache
def table(name: str) -> Examples:
    """A table of scikit-learn: digits, breast_cancer (classes) or diabetes (numbers)."""
    inputs, targets = _table(name)
    valid = min(_VALID, len(inputs) // 3)
    inputs = (inputs - inputs[valid:].mean(0)) / (inputs[valid:].std(0) + 1e-2)
    if name == "diabetes":
        targets = targets.float()[:, None]
        targets = (targets - targets[valid:].mean()) / targets[valid:].std()
        return _split("numbers", inputs, targets, 1, valid)
    return _split("classes", inputs, targets.long(), int(targets.max()) + 1, valid)


@cache
def images() -> Examples:
    """The digits as pictures, (1, 8, 8), of one mean and spread over all pixels."""
    inputs, targets = _table("digits")
    inputs = ((inputs - inputs.mean()) / inputs.std()).view(-1, 1, 8, 8)
    return _split("classes", inputs, targets.long(), 10)


def clusters(seed: int) -> Examples:
    """Gaussian clusters: 3 to 20 classes of a few overlapping clusters each, in 8 to 64 unequal dimensions."""
    generator = torch.Generator().manual_seed(seed)
    classes, dims, each = (_integer(generator, *span) for span in ((3, 21), (8, 65), (1, 5)))
    centers = torch.randn(classes * each, dims, generator=generator)
    which = torch.randint(classes * each, (_MADE,), generator=generator)
    distance = 0.6 + 1.2 * torch.rand((), generator=generator)
    spread = torch.rand(dims, generator=generator) * 1.5 + 0.1
    inputs = (distance * centers[which] + torch.randn(_MADE, dims, generator=generator)) * spread
    return _split("classes", inputs / inputs.std(), which % classes, classes)


def teacher(seed: int, *, numbers: bool) -> Examples:
    """What a random perceptron answers: classes (its largest output), or numbers with noise."""
    generator = torch.Generator().manual_seed(seed)
    dims, width = _integer(generator, 6, 50), _integer(generator, 4, 40)
    outputs = _integer(generator, 1, 6) if numbers else _integer(generator, 2, 12)
    inputs = torch.randn(_MADE, dims, generator=generator)
    mixing = torch.randn(dims, dims, generator=generator) / dims**0.5
    inputs = inputs @ mixing if torch.rand((), generator=generator) < 0.5 else inputs
    hidden = torch.tanh(2 * inputs @ torch.randn(dims, width, generator=generator) / dims**0.5)
    answers = hidden @ torch.randn(width, outputs, generator=generator)
    answers = (answers - answers.mean(0)) / answers.std(0)
    if not numbers:
        return _split("classes", inputs, answers.argmax(1), outputs)
    noise = 0.6 * torch.rand((), generator=generator) * torch.randn(answers.shape, generator=generator)
    return _split("numbers", inputs, answers + noise, outputs)


def maps(seed: int) -> Examples:
    """Many numbers to predict, 12 to 64, of which few directions hold most: a smooth function of 4 to 16 hidden ones.

    The inputs are noisy mixtures of the hidden numbers, the spreads of both fall off as a power of the direction.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, dims, outputs = (_integer(generator, *span) for span in ((4, 17), (12, 65), (12, 65)))
    decay = 0.5 + torch.rand(2, generator=generator)
    latent = torch.randn(_MADE, hidden, generator=generator)
    inputs = latent @ torch.randn(hidden, dims, generator=generator) / hidden**0.5
    inputs = inputs + 0.5 * torch.rand((), generator=generator) * torch.randn(inputs.shape, generator=generator)
    bent = torch.sin(1.5 * latent @ torch.randn(hidden, 32, generator=generator) / hidden**0.5)
    bent = bent * torch.arange(1, 33) ** -decay[0]
    targets = bent @ torch.randn(32, outputs, generator=generator) * torch.arange(1, outputs + 1) ** -decay[1]
    return _split("numbers", inputs / inputs.std(), (targets - targets.mean(0)) / targets.std(), outputs)


def blobs(seed: int) -> Examples:
    """Small pictures, (2, 8, 8): 5 to 10 classes of random smooth patterns, shifted at random and in noise."""
    generator = torch.Generator().manual_seed(seed)
    classes = _integer(generator, 5, 11)
    patterns = torch.randn(classes, 2, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(patterns, size=(8, 8), mode="bilinear")
    which = torch.randint(classes, (_MADE,), generator=generator)
    shift = torch.randint(8, (_MADE,), generator=generator)
    columns = (torch.arange(8)[None] + shift[:, None]) % 8
    inputs = patterns[which].gather(3, columns[:, None, None].expand(-1, 2, 8, -1))
    noise = 0.3 + 0.9 * torch.rand((), generator=generator)
    return _split("classes", inputs + noise * torch.randn(inputs.shape, generator=generator), which, classes)


def tokens(seed: int, time: int = 16) -> Examples:
    """Sequences of a random second-order Markov chain over 8 to 32 tokens, with a motif that is repeated in some."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = _integer(generator, 8, 33)
    contexts = 12
    bucket = torch.randint(contexts, (vocabulary, vocabulary), generator=generator)
    sharpness = 1 + 2 * torch.rand((), generator=generator)
    chances = (sharpness * torch.randn(contexts, vocabulary, generator=generator)).softmax(1)
    count = 2 * _MADE // 3
    rows = [torch.randint(vocabulary, (count,), generator=generator) for _ in range(2)]
    copies = torch.rand(count, generator=generator) < 0.3  # these repeat what came 4 tokens before
    for step in range(2, time + 1):
        drawn = torch.multinomial(chances[bucket[rows[-2], rows[-1]]], 1, generator=generator).squeeze(1)
        rows.append(torch.where(copies, rows[-4], drawn) if step >= 4 else drawn)
    sequences = torch.stack(rows, 1)
    return Examples("tokens", (sequences[_VALID // 2 :],), (sequences[: _VALID // 2],), vocabulary)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


#: Made data by name, from a seed.
MADE: dict[str, Callable[[int], Examples]] = {
    "clusters": clusters,
    "teacher-classes": lambda seed: teacher(seed, numbers=False),
    "teacher-numbers": lambda seed: teacher(seed, numbers=True),
    "maps": maps,
    "blobs": blobs,
    "tokens": tokens,
}


def load_examples(name: str, seed: int) -> Examples:
    """Data by the name in a task: ``table:NAME``, ``images:digits``, or one of :data:`MADE`.

    Raises:
        ValueError: for another name.
    """
    kind, _, which = name.partition(":")
    if kind == "table":
        return table(which)
    if name == "images:digits":
        return images()
    if name not in MADE:
        raise ValueError(f"name must be table:NAME, images:digits or of {', '.join(MADE)}, got {name!r}.")
    return MADE[name](seed)


# ---- tasks

#: Initial rates, log-uniform: four decades and a half around what the base usually needs.
RATES: Final = MappingProxyType[Base, tuple[float, float]]({"sgd": (3e-4, 10.0), "adamw": (1e-5, 0.3)})
#: How often each family of networks is drawn.
FAMILIES: Final = MappingProxyType({"mlp": 0.55, "convnet": 0.15, "transformer": 0.18, "recurrent": 0.12})
#: Length of a family's tasks beside those of perceptrons, whose steps cost least.
_LENGTHS: Final = MappingProxyType({"mlp": 1.0, "convnet": 0.35, "transformer": 0.5, "recurrent": 0.5})


@dataclass(frozen=True)
class TaskSpec:
    """One training task: all that is needed to make it again.

    Attributes:
        family: a key of :data:`FAMILIES`.
        data: its name for :func:`load_examples`.
        seed: of made data, weights, data order and noise.
        train_size: examples to train on, at most.
        label_noise: share of labels drawn at random.
        input_scale: what the inputs are multiplied by (not tokens).
        widths: of the hidden layers, channels, or the width of a block.
        activation: of perceptrons and convnets.
        norm: of perceptrons and convnets.
        gain: of a perceptron's initial weights.
        cell: "gru" or "lstm".
        batch_size: B.
        steps: T.
        momentum: of SGD.
        weight_decay: coupled for SGD, decoupled for AdamW.
    """

    family: str
    data: str
    seed: int
    train_size: int
    label_noise: float
    input_scale: float
    widths: tuple[int, ...]
    activation: Activation
    norm: Norm
    gain: float
    cell: str
    batch_size: int
    steps: int
    momentum: float
    weight_decay: float

    def load(self) -> Examples:
        """Its data."""
        return load_examples(self.data, self.seed)

    def network(self, data: Examples) -> Network:
        """Its network."""
        if self.family == "mlp":
            inputs = data.train[0][0].numel()
            return MLP(inputs, self.widths, data.outputs, self.activation, self.norm, self.gain)
        if self.family == "convnet":
            return ConvNet(data.train[0].shape[1], self.widths, data.outputs, self.activation, self.norm)
        if self.family == "transformer":
            return Transformer(data.outputs, self.widths[0], len(self.widths), 2, data.train[0].shape[1])
        return Recurrent(data.outputs, self.widths[0], "gru" if self.cell == "gru" else "lstm")


def _of(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def sample_task(
    rng: np.random.Generator,
    base: Base,
    *,
    families: tuple[str, ...] = tuple(FAMILIES),
    shortest: int = 100,
    longest: int = 1000,
) -> TaskSpec:
    """Draw a task for a base.

    Args:
        rng: the source of chance.
        base: "sgd" or "adamw".
        families: from which to draw, by the shares of :data:`FAMILIES`.
        shortest: least T.
        longest: greatest T of perceptrons; where steps cost more, a part of it.
    """
    shares = np.array([FAMILIES[family] for family in families])
    family = families[int(rng.choice(len(families), p=shares / shares.sum()))]
    sizes: dict[str, Any] = {
        "mlp": lambda: (int(_of(rng, 16, 32, 64)),) * int(_of(rng, 0, 1, 1, 2, 2, 3)),
        "convnet": lambda: _of(rng, (8,), (8, 16), (16, 16)),
        "transformer": lambda: (int(_of(rng, 16, 32)),) * int(rng.integers(1, 3)),
        "recurrent": lambda: (int(_of(rng, 16, 32)),),
    }
    made = ("clusters", "teacher-classes", "teacher-numbers", "maps")
    sources: dict[str, Any] = {
        "mlp": lambda: _of(
            rng, "table:digits", "table:digits", "table:digits", "table:breast_cancer", "table:diabetes",
            *made, *made,
        ),
        "convnet": lambda: _of(rng, "images:digits", "blobs"),
        "transformer": lambda: "tokens",
        "recurrent": lambda: "tokens",
    }  # fmt: skip
    tokens = family in ("transformer", "recurrent")
    widths: tuple[int, ...] = sizes[family]()
    momentum = float(_of(rng, 0.0, 0.9, 0.9)) if base == "sgd" else 0.0
    decay = _of(rng, 0.0, 5e-4, 1e-3) if base == "sgd" else _of(rng, 0.0, 0.01, 0.1)
    return TaskSpec(
        family=family,
        data=sources[family](),
        seed=int(rng.integers(1 << 31)),
        train_size=int(_of(rng, 120, 250, 600, 1100, 2600)),
        label_noise=float(_of(rng, 0.0, 0.0, 0.0, 0.1, 0.3)),
        input_scale=_log_uniform(rng, 0.4, 2.5),
        widths=widths,
        activation=_of(rng, "relu", "relu", "tanh", "gelu"),
        norm=_of(rng, "none", "none", "layer", "batch") if family == "mlp" else _of(rng, "none", "batch", "batch"),
        gain=float(_of(rng, 0.58, 1.0, 1.41)),
        cell=_of(rng, "gru", "lstm"),
        batch_size=int(_of(rng, 4, 8, 16) if tokens else _of(rng, 16, 32, 64)),
        steps=round(_log_uniform(rng, shortest, max(2 * shortest, longest * _LENGTHS[family]))),
        momentum=momentum,
        weight_decay=float(decay),
    )
