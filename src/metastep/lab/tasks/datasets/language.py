"""Penn Treebank and Shakespeare, by words, characters or pairs of words, and the tasks on them."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from metastep.lab.tasks.data import ExampleData, Examples, TaskData
from metastep.lab.tasks.loaders.text import END, UNKNOWN, encode, read_text, read_words, vocabulary
from metastep.lab.tasks.networks.sequence import LSTMLanguageModel, TransformerLanguageModel, skipgram
from metastep.lab.tasks.sources import FileLayout, find_files
from metastep.lab.tasks.splits import DataOptions, size_to_train, split_text
from metastep.lab.tasks.task import Recipe
from metastep.lab.tasks.text import TextData

_PTB: Final = FileLayout(
    folders=("ptb", "simple-examples/data"), train=("ptb.train.txt",), test=("ptb.valid.txt", "ptb.test.txt")
)
_PTB_REMAINS: Final = FileLayout(folders=("ptb",), train=("valid.txt",), test=("test.txt",))
_SHAKESPEARE: Final = FileLayout(folders=("text",), train=("tinyshakespeare.txt",))
_MOST_TO_TEST: Final = 40_000
_CHUNKS: Final = 40  # of the shortest text of one's own
_WORD: Final = re.compile(r"[a-z']+")


def read_ptb(options: DataOptions, *, chunk: int, recurrent: bool = True) -> TextData:
    """Read Penn Treebank: the standard files or, where the training text is missing, the two others.

    The standard files: trained on ptb.train.txt, inner_valid and then outer_valid are the beginning of
    ptb.valid.txt, tested on ptb.test.txt. Otherwise: trained on valid.txt, held out from the first half of
    test.txt, tested on its second half. Tokens of the held-out text that no split asks for are not used.

    Args:
        options: Sizes of the splits.
        chunk: Words of a stretch through which gradients flow.
        recurrent: Whether the network carries a state from chunk to chunk.
    """
    found = find_files("Penn Treebank", (_PTB, _PTB_REMAINS), options.data_dir)
    training, *others = (read_words(path) for path in (*found.train, *found.test))
    if found.layout is _PTB:
        held_out, test = others
        notes = "Penn Treebank, standard files"
    else:
        (rest,) = others
        held_out, test = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        notes = (
            "Penn Treebank without its training text: trained on valid.txt, the first half of test.txt held "
            "out for validation, its second half for the test; perplexities are not the standard split's"
        )
    for path, words in ((found.train[0], training), (found.test[-1], test)):
        if len(words) < 2:
            raise ValueError(f"{path} must hold at least 2 words, got {len(words)}; fetch it again.")
    inner, outer = options.held_out(len(held_out))
    numbers = vocabulary(training, always=(UNKNOWN, END))
    splits = {
        "train": training[: size_to_train(len(training), options.train_size)],
        "inner_valid": held_out[:inner],
        "outer_valid": held_out[inner : inner + outer],
        "test": test,
    }
    return TextData(
        num_classes=len(numbers),
        notes=notes,
        tokens_by_split={name: encode(tokens, numbers) for name, tokens in splits.items()},
        chunk=chunk,
        recurrent=recurrent,
    )


def character_data(
    path: Path, options: DataOptions, *, chunk: int, recurrent: bool, test: int | None, title: str
) -> TextData:
    """Read a text by characters: the last `test` are the test, before them inner_valid, then outer_valid.

    The vocabulary is the whole text's.

    Args:
        path: The file.
        options: Sizes of the splits.
        chunk: Characters of a stretch through which gradients flow.
        recurrent: Whether the network carries a state from chunk to chunk.
        test: Characters to test on; None: a tenth, at most 40,000.
        title: What the text is called in notes.

    Raises:
        ValueError: If the text is too short, or not UTF-8.
    """
    characters = list(read_text(path))
    if test is None:
        test = min(len(characters) // 10, _MOST_TO_TEST)
        if len(characters) < _CHUNKS * chunk:
            raise ValueError(
                f"{path} must hold at least {_CHUNKS * chunk} characters, got {len(characters)}; take a longer text."
            )
    numbers = vocabulary(characters)
    return TextData(
        num_classes=len(numbers),
        notes=f"{title} by characters, {len(characters)} of them",
        tokens_by_split=split_text(encode(characters, numbers), options, test=test, name=str(path)),
        chunk=chunk,
        recurrent=recurrent,
    )


def read_shakespeare(options: DataOptions, *, chunk: int, recurrent: bool, test: int = 40_000) -> TextData:
    """Read Shakespeare's characters; see `character_data`."""
    found = find_files("Tiny Shakespeare", (_SHAKESPEARE,), options.data_dir)
    return character_data(
        found.train[0], options, chunk=chunk, recurrent=recurrent, test=test, title="Tiny Shakespeare"
    )


def read_shakespeare_windows(options: DataOptions, *, half: int, length: int, test: int) -> ExampleData:
    """Read half of Shakespeare's characters, cut into windows that are shuffled; sizes are of windows.

    In the order of the text: train, outer_valid, inner_valid, test. The vocabulary is the whole text's.

    Args:
        options: Sizes of the splits.
        half: 0 for the first half of the text, 1 for the second.
        length: Characters of a window to predict.
        test: Windows to test on.
    """
    found = find_files("Tiny Shakespeare", (_SHAKESPEARE,), options.data_dir)
    characters = list(read_text(found.train[0]))
    numbers = vocabulary(characters)
    tokens = encode(characters, numbers)
    middle = len(tokens) // 2
    part = (tokens[:middle], tokens[middle:])[half]
    windows = part[: len(part) // (length + 1) * (length + 1)].view(-1, length + 1)
    splits = split_text(windows, options, test=test, name=f"half of {found.train[0]}, as windows,")
    return ExampleData(
        splits_by_name={name: Examples(rows[:, :-1], rows[:, 1:]) for name, rows in splits.items()},
        num_classes=len(numbers),
        notes=f"the {('first', 'second')[half]} half of Tiny Shakespeare, {len(windows)} windows of {length}",
    )


def read_shakespeare_pairs(options: DataOptions, *, words: int, window: int, test: int) -> ExampleData:
    """Read Shakespeare's words; an example is a word and one of its neighbours, which is to be predicted.

    In the order of the text: train, outer_valid, inner_valid, test, each in its own stretch of the text. Pairs
    with a word that is not among the most frequent are left out, and sizes are of pairs.

    Args:
        options: Sizes of the splits.
        words: Size of the vocabulary: the most frequent words, and one place for all others.
        window: Words to either side that are neighbours.
        test: Pairs to test on.
    """
    found = find_files("Tiny Shakespeare", (_SHAKESPEARE,), options.data_dir)
    text = _WORD.findall(read_text(found.train[0]).lower())
    frequent = [word for word, _ in Counter(text).most_common(words - 1)]
    numbers = vocabulary(frequent, always=(UNKNOWN,))
    pairs = neighbours(encode(text, numbers), window)
    splits = split_text(pairs, options, test=test, name=f"{found.train[0]}, as pairs of words,")
    return ExampleData(
        splits_by_name={name: Examples(part[:, 0], part[:, 1]) for name, part in splits.items()},
        num_classes=len(numbers),
        notes=f"Tiny Shakespeare by words, {len(pairs)} pairs of the {len(frequent)} most frequent",
    )


def neighbours(tokens: Tensor, window: int) -> Tensor:
    """Give (pairs, 2): each word with each neighbour, in the order of the text; 0 stands for rare words.

    Args:
        tokens: (words,) int64.
        window: Words to either side that are neighbours.
    """
    offsets = torch.tensor([d for d in range(-window, window + 1) if d])
    centre = torch.arange(window, len(tokens) - window)
    around = tokens[centre[:, None] + offsets]  # (words, 2 window)
    pairs = torch.stack((tokens[centre][:, None].expand_as(around), around), 2).flatten(0, 1)
    return pairs[(pairs != 0).all(1)]


def _recipe(
    name: str,
    summary: str,
    network: Callable[[int], nn.Module],
    read: Callable[[DataOptions], TaskData],
    rate: float,
    *,
    held_out: int = 10_000,
    **other: Any,
) -> Recipe:
    settings: dict[str, Any] = {
        "kind": "language",
        "batch_size": 16,
        "eval_batch_size": 32,
        "total_steps": 200,
        "optimizer": "adamw",
        "optimizer_options": {"weight_decay": 0.01},
        "clip_norm": 1.0,
        **other,
    }
    return Recipe(
        name=name,
        summary=summary,
        network=network,
        read=read,
        learning_rate=rate,
        inner_valid=held_out,
        outer_valid=held_out,
        **settings,
    )


#: The settings of the published experiments on Penn Treebank.
_PUBLISHED: Final[dict[str, Any]] = {
    "held_out": 20_000,
    "batch_size": 32,
    "total_steps": 660,
    "optimizer": "sgd",
    "optimizer_options": {"weight_decay": 5e-6},
    "clip_norm": 0.25,
}
_LONGER: Final[dict[str, Any]] = {"held_out": 40_000, "batch_size": 32, "total_steps": 1000}

TASKS: Final = (
    _recipe(
        "ptb/lstm2",
        "2-layer LSTM of width 512, dropout 0.5, on Penn Treebank, by words",
        partial(LSTMLanguageModel, width=512, layers=2, dropout=0.5),
        partial(read_ptb, chunk=35),
        20.0,
        **_PUBLISHED,
    ),
    _recipe(
        "ptb/lstm3",
        "3-layer LSTM of width 512, dropout 0.5, on Penn Treebank, by words",
        partial(LSTMLanguageModel, width=512, layers=3, dropout=0.5),
        partial(read_ptb, chunk=35),
        20.0,
        **_PUBLISHED,
    ),
    _recipe(
        "ptb/lstm-small",
        "1-layer LSTM of width 64 on Penn Treebank, by words; some tens of milliseconds a step",
        partial(LSTMLanguageModel, width=64, layers=1, dropout=0.0),
        partial(read_ptb, chunk=20),
        0.01,
    ),
    _recipe(
        "ptb/lstm-medium",
        "1-layer LSTM of width 200 (1.5 million parameters with 6,022 words) on Penn Treebank, by words",
        partial(LSTMLanguageModel, width=200, layers=1, dropout=0.0),
        partial(read_ptb, chunk=20),
        5e-3,
    ),
    _recipe(
        "ptb/transformer-small",
        "2-block transformer of width 32, 4 heads (219 k), on Penn Treebank, by words; tens of milliseconds a step",
        partial(TransformerLanguageModel, width=32, layers=2, heads=4, context=20),
        partial(read_ptb, chunk=20, recurrent=False),
        5e-3,
    ),
    _recipe(
        "shakespeare/lstm",
        "2-layer LSTM of width 128 (273 k) on Shakespeare, by characters",
        partial(LSTMLanguageModel, width=128, layers=2, dropout=0.0),
        partial(read_shakespeare, chunk=64, recurrent=True),
        0.01,
        **_LONGER,
    ),
    _recipe(
        "shakespeare/transformer",
        "2-block transformer of width 128, 4 heads (413 k), on Shakespeare, by characters",
        partial(TransformerLanguageModel, width=128, layers=2, heads=4, context=64),
        partial(read_shakespeare, chunk=64, recurrent=False),
        3e-3,
        optimizer_options={"weight_decay": 0.1},
        **_LONGER,
    ),
    _recipe(
        "shakespeare/transformer-large",
        "6-block transformer of width 384, 6 heads (10.7 million), on Shakespeare, by characters",
        partial(TransformerLanguageModel, width=384, layers=6, heads=6, context=128),
        partial(read_shakespeare, chunk=128, recurrent=False),
        1e-3,
        optimizer_options={"weight_decay": 0.1},
        **{**_LONGER, "batch_size": 8, "total_steps": 2000},
    ),
    _recipe(
        "shakespeare/lstm-small",
        "1-layer LSTM of width 64 (38 k) on Shakespeare, by characters; a few milliseconds a step",
        partial(LSTMLanguageModel, width=64, layers=1, dropout=0.0),
        partial(read_shakespeare, chunk=32, recurrent=True, test=10_000),
        0.02,
    ),
    _recipe(
        "shakespeare/transformer-small",
        "2-block transformer of width 32, 4 heads (29 k), on Shakespeare, by characters; a few milliseconds a step",
        partial(TransformerLanguageModel, width=32, layers=2, heads=4, context=32),
        partial(read_shakespeare, chunk=32, recurrent=False, test=10_000),
        5e-3,
        optimizer_options={"weight_decay": 0.1},
    ),
    _recipe(
        "shakespeare/embedding",
        "skip-gram embeddings of width 32 (65 k) of Shakespeare's 1000 most frequent words",
        partial(skipgram, width=32),
        partial(read_shakespeare_pairs, words=1000, window=2, test=10_000),
        0.01,
        batch_size=256,
        eval_batch_size=2000,
        clip_norm=None,
    ),
)
