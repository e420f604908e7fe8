"""Sentences of film reviews, positive or negative, and the tasks on them.

Pang and Lee, "Seeing stars: Exploiting class relationships for sentiment categorization with respect to rating scales",
ACL 2005: 5,331 positive and as many negative sentences, without an official split.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import nn

from metastep.lab.tasks.data import ExampleData, classified
from metastep.lab.tasks.loaders.text import UNKNOWN, encode, read_text, vocabulary
from metastep.lab.tasks.networks.sequence import LSTMClassifier, TextCNN, TransformerClassifier
from metastep.lab.tasks.sources import FileLayout, find_files
from metastep.lab.tasks.splits import DataOptions, balanced_order, split_order
from metastep.lab.tasks.task import Recipe

_LAYOUT: Final = FileLayout(
    folders=("text_classification", "rt-polaritydata", "mr"), train=("rt-polarity.neg", "rt-polarity.pos")
)
_WHERE: Final = (
    "they are in rt-polaritydata.tar.gz of https://www.cs.cornell.edu/people/pabo/movie-review-data "
    "(Pang and Lee, ACL 2005)"
)
_FILLER: Final = "<fill>"
_TEST_SHARE: Final = 0.1
_WORDS: Final = 10_000  # of the vocabulary: about those that occur twice
_LENGTH: Final = 48  # words of a sentence; one in a hundred is longer


def read_sentences(options: DataOptions, *, words: int, length: int) -> ExampleData:
    """Read the sentences: class 0 negative, 1 positive; a tenth is the test.

    The splits are drawn with a constant seed, class-balanced. The vocabulary is that of the training split: its most
    frequent words, one number for all other words, and one that fills up shorter sentences.

    Args:
        options: Sizes of the splits, and the label noise.
        words: Size of the vocabulary.
        length: Words of a sentence; longer ones are cut.
    """
    found = find_files("Pang and Lee's sentences", (_LAYOUT,), options.data_dir, where=_WHERE)
    sentences: list[list[str]] = []
    labels: list[int] = []
    for label, path in enumerate(found.train):
        lines = [line.lower().split() for line in read_text(path, "windows-1252").split("\n") if line.strip()]
        if not lines:
            raise ValueError(f"{path} must hold one sentence a line, got none; fetch it again.")
        sentences += lines
        labels += [label] * len(lines)
    classes = torch.tensor(labels)
    rows = split_order(balanced_order(classes), options, test=round(_TEST_SHARE * len(classes)))
    counts = Counter(word for row in rows["train"].tolist() for word in sentences[row])
    # Equally frequent words in the order of the alphabet, so that the vocabulary does not depend on their place.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: words - 2]
    numbers = vocabulary(frequent, always=(_FILLER, UNKNOWN))
    tokens = torch.zeros(len(sentences), length, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = encode(sentence[:length], numbers)
    splits = classified(tokens, classes, rows, options=options, num_classes=len(found.train))
    notes = f"Pang and Lee's sentences (ACL 2005), {len(sentences)} of them, {len(numbers)} words"
    return ExampleData(splits_by_name=splits, num_classes=len(found.train), notes=notes)


def _recipe(name: str, summary: str, network: Callable[[int], nn.Module], rate: float) -> Recipe:
    return Recipe(
        name=name,
        summary=f"{summary} on Pang and Lee's sentences of film reviews, positive or negative",
        network=network,
        read=partial(read_sentences, words=_WORDS, length=_LENGTH),
        batch_size=50,
        total_steps=600,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.01},
        learning_rate=rate,
        inner_valid=1000,
        outer_valid=1000,
    )


TASKS: Final = (
    _recipe(
        "mr/textcnn",
        "convolutions over 3, 4 and 5 words, 50 maps each (679 k)",
        partial(TextCNN, vocabulary=_WORDS, width=64, maps=50),
        2e-3,
    ),
    _recipe("mr/lstm", "LSTM layer of width 64 (673 k)", partial(LSTMClassifier, vocabulary=_WORDS, width=64), 5e-3),
    _recipe(
        "mr/transformer",
        "2-block transformer of width 64, 4 heads (743 k),",
        partial(TransformerClassifier, vocabulary=_WORDS, width=64, layers=2, heads=4, length=_LENGTH),
        1e-3,
    ),
)
