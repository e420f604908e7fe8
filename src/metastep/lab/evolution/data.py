"""What populations train on: tables that come with scikit-learn, and data made from a seed.

Nothing here is a held-out data set. Every source gives training and validation examples; the inputs of classes and
numbers are standardised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["classes", "numbers", "tokens"]
_VALID = 400
_MADE = 3000


@dataclass(frozen=True)
class Data:
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


@cache
def table(name: str) -> Data:
    """A table of scikit-learn: digits, breast_cancer (classes) or diabetes (numbers)."""
    inputs, targets = _table(name)
    valid = min(_VALID, len(inputs) // 3)
    inputs = (inputs - inputs[valid:].mean(0)) / (inputs[valid:].std(0) + 1e-2)
    if name == "diabetes":
        targets = targets.float()[:, None]
        targets = (targets - targets[valid:].mean()) / targets[valid:].std()
        return Data("numbers", (inputs[valid:], targets[valid:]), (inputs[:valid], targets[:valid]), 1)
    targets = targets.long()
    return Data("classes", (inputs[valid:], targets[valid:]), (inputs[:valid], targets[:valid]), int(targets.max()) + 1)


@cache
def images(name: str) -> Data:
    """The digits as pictures, (1, 8, 8), of one mean and spread over all pixels."""
    assert name == "digits"
    inputs, targets = _table(name)
    inputs = ((inputs - inputs.mean()) / inputs.std()).view(-1, 1, 8, 8)
    targets = targets.long()
    return Data("classes", (inputs[_VALID:], targets[_VALID:]), (inputs[:_VALID], targets[:_VALID]), 10)


def _split(kind: Kind, inputs: Tensor, targets: Tensor, outputs: int) -> Data:
    return Data(kind, (inputs[_VALID:], targets[_VALID:]), (inputs[:_VALID], targets[:_VALID]), outputs)


def clusters(seed: int) -> Data:
    """Gaussian clusters: 3 to 20 classes of a few overlapping clusters each, in 8 to 64 unequal dimensions."""
    generator = torch.Generator().manual_seed(seed)
    classes, dims, each = (_integer(generator, *span) for span in ((3, 21), (8, 65), (1, 5)))
    centers = torch.randn(classes * each, dims, generator=generator)
    which = torch.randint(classes * each, (_MADE,), generator=generator)
    distance = 0.6 + 1.2 * torch.rand((), generator=generator)
    spread = torch.rand(dims, generator=generator) * 1.5 + 0.1
    inputs = (distance * centers[which] + torch.randn(_MADE, dims, generator=generator)) * spread
    return _split("classes", inputs / inputs.std(), which % classes, classes)


def teacher(seed: int, *, numbers: bool) -> Data:
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


def maps(seed: int) -> Data:
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


def blobs(seed: int) -> Data:
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


def tokens(seed: int, time: int = 16) -> Data:
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
    return Data("tokens", (sequences[_VALID // 2 :],), (sequences[: _VALID // 2],), vocabulary)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


#: Made data by name, from a seed.
MADE: dict[str, Callable[[int], Data]] = {
    "clusters": clusters,
    "teacher-classes": lambda seed: teacher(seed, numbers=False),
    "teacher-numbers": lambda seed: teacher(seed, numbers=True),
    "maps": maps,
    "blobs": blobs,
    "tokens": tokens,
}


def load(name: str, seed: int) -> Data:
    """Data by the name in a task: ``table:NAME``, ``images:digits``, or one of :data:`MADE`.

    Raises:
        ValueError: for another name.
    """
    kind, _, which = name.partition(":")
    readers: dict[str, Any] = {"table": table, "images": images}
    if kind in readers:
        data: Data = readers[kind](which)
        return data
    if name not in MADE:
        raise ValueError(f"name must be table:NAME, images:digits or of {', '.join(MADE)}, got {name!r}.")
    return MADE[name](seed)
