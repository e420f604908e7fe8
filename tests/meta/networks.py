"""Two small float64 networks for the meta-gradient tests, with everything that is easily got wrong in them."""

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions, batch norm, dropout, and weights whose first dimension is one."""

    def __init__(self) -> None:
        super().__init__()
        # no bias before a batch norm: its gradient is rounding noise, of which Adam makes steps of full size
        self.first, self.first_norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 4 * 4, 3)
        self.temperature = nn.Linear(3, 1)  # weight (1, 3), bias (1,)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first_norm(self.first(x)))
        x = torch.tanh(self.second_norm(self.second(x)))
        logits = self.head(self.dropout(x.flatten(1)))
        return logits * (1 + 0.1 * self.temperature(logits))


class LanguageModel(nn.Module):
    """An LSTM with dropout whose decoder weight is its embedding."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.3)
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.dropout(self.embedding(tokens)))
        return self.decoder(self.dropout(hidden))


def images(seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A ConvNet and eight batches of noise with labels, all from the seed."""
    torch.manual_seed(seed)
    model = ConvNet().double()
    return model, [(torch.randn(6, 1, 8, 8).double(), torch.randint(3, (6,))) for _ in range(8)]


def text(seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A LanguageModel and eight batches of random tokens (5 steps x 3 streams), all from the seed."""
    torch.manual_seed(seed)
    model = LanguageModel().double()
    return model, [(torch.randint(11, (5, 3)), torch.randint(11, (15,))) for _ in range(8)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).reshape(len(targets), -1), targets)
