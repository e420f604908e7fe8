"""A recurrent language model whose output layer shares its weights with the embedding."""

from torch import Tensor, nn


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
