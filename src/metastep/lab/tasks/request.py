"""What is asked of a data set: where it lies, how it is split, how noisy its labels are."""

from dataclasses import dataclass
from pathlib import Path

from metastep.lab.tasks.noise import LabelNoise


@dataclass(frozen=True, kw_only=True)
class Request:
    """The data options of `load_task`, with the task's defaults filled in.

    Args:
        inner_valid: Examples (tokens) for meta-gradients, >= 0.
        outer_valid: Examples (tokens) for tuning and curves, >= 0.
        train_size: Use only so many training examples (tokens); None: all.
        data_dir: Where to look for files; None: the places that `data_roots` names.
        label_noise: Noise of the training labels; None: clean.
    """

    inner_valid: int
    outer_valid: int
    train_size: int | None = None
    data_dir: Path | str | None = None
    label_noise: LabelNoise | None = None
