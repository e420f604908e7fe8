"""A small decoder-only transformer with layer norm before each part."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class Attention(nn.Module):
    """Self-attention of several heads, causal where no token may see those behind it."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        batch, time, width = x.shape
        split = self.project_in(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, width / heads)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
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

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        x = x + self.attention(x)
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
