"""A method: an optimizer and a schedule under one name, what of them is tuned and over which space."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from metastep.lab.bench.config import MetaConfig
from metastep.lab.bench.optimizers import OPTIMIZERS, base_of
from metastep.lab.bench.schedules import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

    from metastep.lab.bench.config import RunConfig

#: About so many meta-updates in a run that learns something on its way.
META_UPDATES = 100

#: Optimizers that add the weight decay to the gradient. A decay that was chosen for AdamW, which takes it from the
#: weights directly, is a hundred times too strong for them: so much of it is left at most.
_COUPLED = ("sgd", "adam", "nadam", "radam", "rmsprop", "adagrad", "adadelta")
_LARGEST_COUPLED = 5e-4

#: Tuned values that are no option of the optimizer.
LR, WARMUP, META_LR = "lr", "warmup", "meta_lr"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the table of methods.

    Args:
        name: under which it is found.
        summary: one line for ``metastep list methods``.
        source: a paper, by arXiv number where it has one.
        optimizer: a name of :data:`metastep.lab.bench.optimizers.OPTIMIZERS`.
        options: of the optimizer, those that are fixed.
        lengths: of the optimizer, those that are numbers of steps: a share of the run, and the fewest there may be.
        schedule: a name or files, see :func:`metastep.lab.bench.schedules.make_schedule`.
        scale: of a schedule that scales itself: "measured", "momentum" or "lr".
        space: what is tuned, and over what: ``lr``; ``warmup``, as a share of the run; ``meta_lr``; any other name is
            an option of the optimizer.
        defaults: the published value, else the one usual in the field, of everything tuned.
        shares: of a hypergradient optimizer, by level: its share of the tuned ``hyper_lr``; empty: each has all of it.
        weight_decay: whether the optimizer has a weight decay, which is then the task's.
        search: what proposes values once a few were tried: "tpe", the tree-structured Parzen estimator, or "gp", a
            Gaussian process.
        missing: why this method cannot be run anywhere, although the field names it; empty: it can.

    Raises:
        ValueError: for a tuned value without a default in its space, or a default of what is not tuned.
    """

    name: str
    summary: str
    source: str
    optimizer: str
    schedule: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    scale: str = "measured"
    space: Mapping[str, Space]
    defaults: Mapping[str, Any]
    shares: Mapping[str, float] = field(default_factory=dict)
    weight_decay: bool = True
    search: Literal["tpe", "gp"] = "tpe"
    missing: str = ""

    def __post_init__(self) -> None:
        if self.space.keys() != self.defaults.keys():
            raise ValueError(
                f"defaults must name what {self.name} tunes ({', '.join(self.space)}), got {', '.join(self.defaults)}."
            )
        for name, space in self.space.items():
            space.checked(f"defaults[{name!r}] of {self.name}", self.defaults[name])

    def configure(self, base: RunConfig, values: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the run of this method: the task, seed, length and so on of another, and values of what is tuned.

        Args:
            base: a run of the same task; its rate is kept where the method tunes none, its optimizer is replaced, of
                whose options only ``weight_decay`` is kept: at most 5e-4 where it was decoupled and is so no longer.
            values: by name, instead of the defaults. They may lie outside the space, as a study of sensitivity wants.

        Raises:
            ValueError: for a value of what this method does not tune, or one that a run refuses.
            ImportError: for a method that cannot be run anywhere; it says why.
        """
        if self.missing:
            raise ImportError(f"method {self.name} cannot be run: {self.missing}")
        given = dict(values or {})
        if unknown := given.keys() - self.space.keys():
            raise ValueError(
                f"values must be of what {self.name} tunes ({', '.join(self.space) or 'nothing'}), "
                f"got {', '.join(sorted(unknown))}; leave them out."
            )
        tuned = {**self.defaults, **given}
        lr = tuned.pop(LR, base.lr)
        warmup = tuned.pop(WARMUP, None)
        meta_lr = tuned.pop(META_LR, None)
        lengths = {name: max(fewest, round(share * base.total_steps)) for name, (share, fewest) in self.lengths.items()}
        if self.shares:
            tuned["hyper_lr"] = {level: share * tuned["hyper_lr"] for level, share in self.shares.items()}
        kept = {}
        if "weight_decay" in base.optimizer_options:
            decay = base.optimizer_options["weight_decay"]
            coupled = base_of(self.optimizer) in _COUPLED and not self.options.get("decoupled_weight_decay")
            from_decoupled = base_of(base.optimizer) == "adamw" and coupled
            kept["weight_decay"] = min(decay, _LARGEST_COUPLED) if from_decoupled else decay
        return replace(
            base,
            optimizer=self.optimizer,
            optimizer_options={**(kept if self.weight_decay else {}), **self.options, **lengths, **tuned},
            schedule=self.schedule,
            lr=lr,
            scale=self.scale,
            warmup_steps=base.warmup_steps if warmup is None else round(warmup * base.total_steps),
            meta=self._meta(base, meta_lr),
        )

    def _meta(self, base: RunConfig, meta_lr: float | None) -> MetaConfig | None:
        if not (self.schedule in SCHEDULES and SCHEDULES[self.schedule].learns):
            return None
        meta = base.meta or MetaConfig(every=max(1, base.total_steps // META_UPDATES))
        return meta if meta_lr is None else replace(meta, meta_lr=meta_lr)

    def tunes(self) -> str:
        """What is tuned, over what, and the default: ``lr 1e-3 .. 10, log (0.1)``; several are joined by semicolons."""
        parts = (f"{name} {space.describe()} ({short(self.defaults[name])})" for name, space in self.space.items())
        return "; ".join(parts) or "nothing"

    @property
    def package(self) -> str | None:
        """The package that is imported when the method is used; None: none besides torch."""
        return OPTIMIZERS[self.optimizer].package

    @property
    def extra(self) -> str | None:
        """The extra of metastep that brings the package."""
        return OPTIMIZERS[self.optimizer].extra


# ---- where a tuned value may lie: spaces that Optuna draws from, that check a value and describe themselves


class Space(ABC):
    """The values that a search may give to one argument."""

    @abstractmethod
    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Let a trial choose a value, under a name that is its own in the trial."""

    @abstractmethod
    def describe(self) -> str:
        """Say in a few characters which values there are."""

    @abstractmethod
    def __contains__(self, value: object) -> bool:
        """Whether a value lies in the space."""

    def checked(self, name: str, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: if it does not lie in the space; it names the argument.
        """
        if value not in self:
            raise ValueError(f"{name} must lie in {self.describe()}, got {value!r}; choose a value there.")
        return value


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Uniform(Space):
    """The numbers of an interval, each as likely as any other.

    Args:
        low: smallest value.
        high: largest value, > low.

    Raises:
        ValueError: for bounds that are no interval.

    Example:
        >>> Uniform(0.8, 0.99).describe(), 0.9 in Uniform(0.8, 0.99), 1.0 in Uniform(0.8, 0.99)
        ('0.8 .. 0.99', True, False)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (_number(self.low) and _number(self.high) and self.low < self.high):
            raise ValueError(f"low must be a number below high, got {self.low!r} and {self.high!r}; exchange them.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Let a trial choose a number."""
        return trial.suggest_float(name, self.low, self.high)

    def describe(self) -> str:
        """Say where the interval begins and ends."""
        return f"{short(self.low)} .. {short(self.high)}"

    def __contains__(self, value: object) -> bool:
        return _number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class LogUniform(Uniform):
    """The numbers of an interval above 0, each power of ten as likely as any other.

    Args:
        low: smallest value, > 0.
        high: largest value, > low.

    Raises:
        ValueError: for bounds that are no interval above 0.

    Example:
        >>> LogUniform(1e-4, 1.0).describe()
        '1e-4 .. 1, log'
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"low must be > 0 on a logarithmic scale, got {self.low!r}; use Uniform to reach 0.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Let a trial choose a number."""
        return trial.suggest_float(name, self.low, self.high, log=True)

    def describe(self) -> str:
        """Say where the interval begins and ends."""
        return f"{super().describe()}, log"


@dataclass(frozen=True)
class Choice(Space):
    """A few values, each as likely as any other.

    Args:
        values: None, numbers, texts or truth values; at least two, all different.

    Raises:
        ValueError: for fewer than two, or one that is there twice.

    Example:
        >>> Choice((1, 4, 16)).describe(), 4 in Choice((1, 4, 16))
        ('1, 4 or 16', True)
    """

    values: tuple[bool | float | str | None, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(self.values)) != len(self.values):
            raise ValueError(f"values must be two or more, all different, got {self.values!r}; name each once.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Let a trial choose one of the values."""
        return trial.suggest_categorical(name, self.values)

    def describe(self) -> str:
        """Name the values."""
        *others, last = (short(value) for value in self.values)
        return f"{', '.join(others)} or {last}"

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(one) and value == one for one in self.values) or (
            _number(value) and any(_number(one) and value == one for one in self.values)
        )


def short(value: object) -> str:
    """A value as people write it: 1e-4 rather than 0.0001 or 1e-04."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
