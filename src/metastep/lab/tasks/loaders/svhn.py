"""SVHN's cropped digits, in the MATLAB files in which they are published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metastep.lab.tasks.loaders.decode import Labelled
from metastep.lab.tasks.sources import optional_module


def read_svhn(files: Sequence[Path]) -> Labelled:
    """Read train_32x32.mat, or test_32x32.mat; the label 10 stands for the digit 0.

    Raises:
        ValueError: If a file is no such file.
    """
    loadmat = optional_module("scipy.io").loadmat
    images, labels = [], []
    for path in files:
        try:
            found = loadmat(path, variable_names=("X", "y"))
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{path} must be a MATLAB file, got one that is refused: {error}.") from error
        pixels, digits = found.get("X"), found.get("y")
        if pixels is None or digits is None:
            raise ValueError(f"{path} must hold X and y, got {sorted(name for name in found if name[0] != '_')}.")
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, digits.size):
            raise ValueError(
                f"{path} must hold (32, 32, 3, {digits.size}) uint8 pixels for its labels, "
                f"got {pixels.shape} {pixels.dtype}."
            )
        classes = digits.ravel().astype(np.int64)
        if classes.size and not 0 <= classes.min() <= classes.max() <= 10:
            raise ValueError(f"{path} must hold labels in 1..10, got {classes.min()}..{classes.max()}.")
        images.append(pixels.transpose(3, 0, 1, 2))
        labels.append(classes % 10)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)
