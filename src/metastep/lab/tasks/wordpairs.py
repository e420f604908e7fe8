"""Pairs of neighbouring words of a text, from which word embeddings are learned."""

import re
from collections import Counter

import torch
from torch import Tensor

from metastep.lab.tasks.examples import ExampleData, Examples
from metastep.lab.tasks.language import SHAKESPEARE
from metastep.lab.tasks.loaders.text import UNKNOWN, encode, vocabulary
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.sources import find_files
from metastep.lab.tasks.splits import size_left, size_to_train

_WORD = re.compile(r"[a-z']+")


def read_shakespeare_pairs(request: Request, *, words: int, window: int, test: int) -> ExampleData:
    """Read Shakespeare's words; an example is a word and one of its neighbours, which is to be predicted.

    In the order of the text: train, outer_valid, inner_valid, test, each in its own stretch of the text. Pairs
    with a word that is not among the most frequent are left out, and sizes are of pairs.

    Args:
        request: Sizes of the splits.
        words: Size of the vocabulary: the most frequent words, and one place for all others.
        window: Words to either side that are neighbours.
        test: Pairs to test on.
    """
    found = find_files("Tiny Shakespeare", (SHAKESPEARE,), request.data_dir)
    text = _WORD.findall(found.train[0].read_text("utf-8").lower())
    frequent = [word for word, _ in Counter(text).most_common(words - 1)]
    numbers = vocabulary(frequent, always=(UNKNOWN,))
    pairs = _pairs(encode(text, numbers), window)
    if len(pairs) <= test:
        raise ValueError(f"{found.train[0]} must hold more than {test} pairs of words, got {len(pairs)}.")
    held = request.inner_valid + request.outer_valid
    left = size_left(len(pairs) - test, inner_valid=request.inner_valid, outer_valid=request.outer_valid)
    stretches = {
        "train": pairs[: size_to_train(left, request.train_size)],
        "inner_valid": pairs[left + request.outer_valid : left + held],
        "outer_valid": pairs[left : left + request.outer_valid],
        "test": pairs[left + held :],
    }
    return ExampleData(
        splits_by_name={name: Examples(part[:, 0], part[:, 1]) for name, part in stretches.items()},
        num_classes=len(numbers),
        notes=f"Tiny Shakespeare by words, {len(pairs)} pairs of the {len(frequent)} most frequent",
    )


def _pairs(tokens: Tensor, window: int) -> Tensor:
    """Give (pairs, 2): each word with each neighbour, in the order of the text; 0 stands for rare words."""
    offsets = torch.tensor([d for d in range(-window, window + 1) if d])
    centre = torch.arange(window, len(tokens) - window)
    neighbours = tokens[centre[:, None] + offsets]  # (words, 2 window)
    pairs = torch.stack((tokens[centre][:, None].expand_as(neighbours), neighbours), 2).flatten(0, 1)
    return pairs[(pairs != 0).all(1)]
