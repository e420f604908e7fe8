"""Networks that read sequences: language models, classifiers of sentences and of images in patches, embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu, scaled_dot_product_attention


class Attention(nn.Module):
    """Self-attention of several heads, causal where no token may see those behind it."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, time, width) to the same shape; `mask`, (batch, 1, 1, time) bool, says which tokens are seen."""
        batch, time, width = x.shape
        split = self.project_in(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, width / heads)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        out: Tensor = self.project_out(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


class Block(nn.Module):
    """x <- x + attention(norm x); x <- x + perceptron(norm x)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal=causal))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, time, width) to the same shape; see `Attention`."""
        norm, attention = self.attention
        x = x + attention(norm(x), mask)
        out: Tensor = x + self.perceptron(x)
        return out


class TransformerLanguageModel(nn.Module):
    """Token and position embeddings, blocks, and a tied output layer.

    Args:
        vocabulary: Number of tokens.
        width: Of the embeddings and of every block.
        layers: Blocks.
        heads: Attention heads a block; divides the width.
        context: Longest stretch of tokens.
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the token after each.

        Args:
            tokens: (batch, time) int64, with time <= context.

        Returns:
            (batch, time, vocabulary) logits.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.norm(self.blocks(self.embedding(tokens) + self.position(positions)))
        return linear(hidden, self.embedding.weight)


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021).

    Patches and a class token through transformer blocks with layer norm first; the class token is read out.

    Args:
        num_classes: Outputs.
        channels: Channels of the images.
        size: Height and width of the images.
        patch: Height and width of a patch; divides the size.
        width: Of the tokens and of every block.
        layers: Blocks.
        heads: Attention heads a block; divides the width.

    Raises:
        ValueError: If the patches do not tile the image.
    """

    def __init__(
        self, num_classes: int, *, channels: int, size: int, patch: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide the size {size} of the images, got {patch}.")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, size, size) to (batch, classes)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (batch, patches, width)
        tokens = torch.cat((self.class_token.expand(len(images), -1, -1), patches), 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM layers of the same width, and the embedding's transpose to predict the next token.

    Args:
        vocabulary: Number of tokens.
        width: Of the embedding and of every layer.
        layers: LSTM layers.
        dropout: After the embedding, between the layers, and after the last.
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Predict the token after each.

        Args:
            tokens: (batch, time) int64.
            state: (h, c), each (layers, batch, width), as left by the tokens before; None: zeros.

        Returns:
            (batch, time, vocabulary) logits, and the state that these tokens leave.
        """
        hidden, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits, state


def skipgram(vocabulary: int, *, width: int) -> nn.Sequential:
    """Make word embeddings that predict neighbours (skip-gram, Mikolov et al. 2013), with the whole softmax.

    A table of word vectors, and a second one that scores the words around: (batch,) to (batch, vocabulary).

    Args:
        vocabulary: Number of words.
        width: Numbers of a word vector.
    """
    vectors, contexts = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
    nn.init.uniform_(vectors.weight, -0.5, 0.5)
    nn.init.zeros_(contexts.weight)
    nn.init.zeros_(contexts.bias)
    return nn.Sequential(vectors, contexts)


# Classifiers of sentences: (batch, time) int64 words, in which 0 fills up the shorter sentences.

_FILLER = 0


class TextCNN(nn.Module):
    """Filters over a few neighbouring words, and the largest answer of each (Kim 2014).

    Args:
        num_classes: Outputs.
        vocabulary: Number of words, the filler among them.
        width: Of the word vectors.
        maps: Filters of each size.
        windows: Words that a filter sees; published: 3, 4, 5.
        dropout: Before the output layer; published: 0.5.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary: int,
        width: int,
        maps: int,
        windows: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=_FILLER)
        self.filters = nn.ModuleList(nn.Conv1d(width, maps, window) for window in windows)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(maps * len(windows), num_classes))

    def forward(self, words: Tensor) -> Tensor:
        """(batch, time) to (batch, classes)."""
        vectors = self.embedding(words).transpose(1, 2)  # (batch, width, time)
        found = [relu(filters(vectors)).amax(2) for filters in self.filters]
        logits: Tensor = self.head(torch.cat(found, 1))
        return logits


class LSTMClassifier(nn.Module):
    """An LSTM layer over the words of a sentence; the mean of its outputs is read.

    Args:
        num_classes: Outputs.
        vocabulary: Number of words, the filler among them.
        width: Of the word vectors and of the layer.
        dropout: Of the word vectors, and before the output layer.
    """

    def __init__(self, num_classes: int, *, vocabulary: int, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=_FILLER)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """(batch, time) to (batch, classes)."""
        hidden, _ = self.lstm(self.dropout(self.embedding(words)))
        logits: Tensor = self.output(self.dropout(_mean_of_words(hidden, words != _FILLER)))
        return logits


class TransformerClassifier(nn.Module):
    """Transformer blocks with layer norm first over the words of a sentence; the mean of their outputs is read.

    Args:
        num_classes: Outputs.
        vocabulary: Number of words, the filler among them.
        width: Of the word vectors and of every block.
        layers: Blocks.
        heads: Attention heads a block; divides the width.
        length: Longest sentence, in words.
        dropout: Of the word vectors, and before the output layer.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        length: int,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=_FILLER)
        self.position = nn.Parameter(torch.empty(1, length, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        """(batch, time) to (batch, classes), with time <= length."""
        seen = words != _FILLER
        hidden = self.dropout(self.embedding(words) + self.position[:, : words.shape[1]])
        for block in self.blocks:
            hidden = block(hidden, seen[:, None, None, :])
        logits: Tensor = self.output(self.dropout(_mean_of_words(self.norm(hidden), seen)))
        return logits


def _mean_of_words(hidden: Tensor, seen: Tensor) -> Tensor:
    """(batch, time, width) and (batch, time) bool to (batch, width)."""
    weights = seen.to(hidden.dtype)[:, :, None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
