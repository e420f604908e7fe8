"""Plain text to tokens: words with an end of sentence per line, or single characters."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

UNKNOWN: Final = "<unk>"
END: Final = "<eos>"


def read_words(path: Path) -> list[str]:
    """Read words separated by spaces, and an <eos> after every line."""
    return [word for line in path.read_text("utf-8").splitlines() for word in (*line.split(), END)]


def read_characters(path: Path) -> list[str]:
    """Read all characters, line ends included."""
    return list(path.read_text("utf-8"))


def vocabulary(tokens: Iterable[str], *, always: Sequence[str] = ()) -> dict[str, int]:
    """Number the distinct tokens, those of `always` first and the others in sorted order."""
    return {token: i for i, token in enumerate([*always, *sorted(set(tokens) - set(always))])}


def encode(tokens: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Give the tokens' numbers, (tokens,) int64; one that has none gets that of <unk>.

    Raises:
        ValueError: If a token has no number and there is no <unk>.
    """
    unknown = numbers.get(UNKNOWN)
    known = [numbers.get(token, unknown) for token in tokens]
    if None in known:
        raise ValueError(f"tokens must be in the vocabulary, got {tokens[known.index(None)]!r}.")
    return torch.tensor(known, dtype=torch.int64)
