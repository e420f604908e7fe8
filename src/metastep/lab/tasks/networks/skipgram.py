"""Word embeddings by predicting neighbours (skip-gram, Mikolov et al. 2013), with the whole softmax."""

from torch import nn


def skipgram(vocabulary: int, *, width: int) -> nn.Sequential:
    """Make a table of word vectors and a second one that scores the words around; (batch,) to (batch, vocabulary).

    Args:
        vocabulary: Number of words.
        width: Numbers of a word vector.
    """
    vectors, contexts = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
    nn.init.uniform_(vectors.weight, -0.5, 0.5)
    nn.init.zeros_(contexts.weight)
    nn.init.zeros_(contexts.bias)
    return nn.Sequential(vectors, contexts)
