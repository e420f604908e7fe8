"""Text files to tokens: words with an end of sentence per line, single characters, labelled sentences."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

UNKNOWN: Final = "<unk>"
END: Final = "<eos>"


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file; a byte-order mark is no character of it, and all line ends become newlines.

    Raises:
        ValueError: If it is written in another encoding; the message has the file and the remedy.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} must be {encoding} text, got UTF-16; convert it: iconv -f UTF-16 -t UTF-8.")
    try:
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be {encoding} text, got byte {data[error.start]:#04x} at {error.start}; convert it, "
            "such as by iconv -f WINDOWS-1252 -t UTF-8."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_words(path: Path) -> list[str]:
    """Read words separated by spaces, and an <eos> after every line."""
    return [word for line in read_text(path).splitlines() for word in (*line.split(), END)]


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
