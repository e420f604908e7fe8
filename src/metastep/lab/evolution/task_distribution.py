"""The tasks on which schedules are trained, and those that no training ever sees.

    trained on     scikit-learn's digits (as a table and as pictures), breast cancer, diabetes; Gaussian clusters,
                   random teacher networks (classes and numbers), maps to many numbers, smooth patterns in noise,
                   Markov chains of tokens;
                   linear models, perceptrons, small convnets, transformers of one and two blocks, GRUs and LSTMs
    held out       CIFAR-10, MNIST, Tiny Shakespeare, Penn Treebank and every other data set of the benchmark;
                   residual networks, vision transformers and mixers, autoencoders, embedding models

A task is a handful of numbers drawn from a seed. Lengths are log-uniform, initial rates log-uniform over the range of
the base.
"""

from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np

from metastep.lab.evolution.data import Data, load
from metastep.lab.evolution.networks import MLP, Activation, ConvNet, Network, Norm, Recurrent, Transformer
from metastep.lab.evolution.rules import Base

#: The one table of what is trained on and what is not.
TRAINED_ON: Final = MappingProxyType(
    {
        "data": ("digits", "breast cancer", "diabetes", "clusters", "teachers", "maps", "smooth patterns", "chains"),
        "networks": ("linear model", "perceptron", "convnet", "transformer", "GRU", "LSTM"),
    }
)
HELD_OUT: Final = MappingProxyType(
    {
        "data": ("CIFAR-10", "MNIST", "Tiny Shakespeare", "Penn Treebank"),
        "networks": ("residual network", "vision transformer", "mixer", "autoencoder", "embedding model"),
    }
)

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
        data: its name in ``data.py``.
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

    def load(self) -> Data:
        """Its data."""
        return load(self.data, self.seed)

    def network(self, data: Data) -> Network:
        """Its network."""
        if self.family == "mlp":
            inputs = data.train[0][0].numel()
            return MLP(inputs, self.widths, data.outputs, self.activation, self.norm, self.gain)
        if self.family == "convnet":
            return ConvNet(data.train[0].shape[1], self.widths, data.outputs, self.activation, self.norm)
        if self.family == "transformer":
            return Transformer(data.outputs, self.widths[0], len(self.widths), 2, data.train[0].shape[1])
        return Recurrent(data.outputs, self.widths[0], "gru" if self.cell == "gru" else "lstm")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a record."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The task of :meth:`as_dict`."""
        return cls(**{**{f.name: values[f.name] for f in fields(cls)}, "widths": tuple(values["widths"])})


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
