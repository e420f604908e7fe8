"""A compiled model in a plain PyTorch loop: a schedule is learned, then an optimizer adapts its own rates.

    python examples/plain_pytorch_compile.py

Nothing is recompiled when a rate changes: rates are the optimizer's business, and the model alone is compiled. The
validation loss calls the module itself, which shares its weights with the compiled one.
"""

import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn

import metastep as ms
from metastep.optim import HyperAdamW

STEPS = 60


def main() -> dict[str, list[float]]:
    """Train twice; return the losses."""
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    held_out, history = slice(1500, None), {}

    def make() -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        # The default backend is faster and takes half a minute for its first compilation: leave the argument out.
        return model, torch.compile(model, backend="aot_eager")

    def loss_of(model: Callable[[torch.Tensor], torch.Tensor], rows: slice | torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(images[rows]), labels[rows])

    # 1. learn a schedule from validation data
    model, compiled = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, ms.MLRSNet(), num_classes=10)
    learner = ms.MetaLearner(lr, lambda: loss_of(model, held_out), every=5, meta_lr=0.01)
    losses = history["learned schedule"] = []
    for _ in range(STEPS):
        loss = loss_of(compiled, torch.randint(1500, (64,)))
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        learner.step()
        losses.append(loss.item())

    # 2. an optimizer that adapts its rates
    model, compiled = make()
    optimizer = HyperAdamW(model.parameters(), lr=1e-3, levels=("global", "layer"))
    losses = history["HyperAdamW"] = []
    for _ in range(STEPS):
        loss = loss_of(compiled, torch.randint(1500, (64,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for name, losses in history.items():
        sys.stdout.write(f"{name:16s}  loss {losses[0]:.3f} -> {losses[-1]:.3f}\n")
    sys.stdout.write(f"last learned rate {lr.get_last_lr()[0]:.3f}, {learner.meta_updates} meta-updates\n")
    return history


if __name__ == "__main__":
    main()
