"""Accelerate: a loop with accumulation, clipping and a checkpoint, at the rates of a schedule.

    pip install "metastep[accelerate,data]"
    python examples/accelerate_digits.py [FOLDER [SCHEDULE.safetensors]]
    accelerate launch --num_processes 2 --cpu examples/accelerate_digits.py

Without a file the schedule is untrained: it shows how things are connected, not how well they do.
"""

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms
from metastep.integrations.accelerate import AcceleratedLR


def main(folder: str = "accelerate_digits", path: str | None = None) -> list[tuple[float, float]]:
    """Train; return the loss and the rate after each epoch."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    data = load_digits()
    dataset = TensorDataset(torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = ms.MLRSNet() if path is None else ms.load_schedule(path)
    lr = AcceleratedLR(accelerator, optimizer, schedule, num_classes=10)

    history = []
    for epoch in range(3):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                lr.observe(loss)  # the loss itself, before backward divides it
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()  # writes the rate first, in the last micro-batch of a window
                optimizer.zero_grad()
        accelerator.save_state(folder)  # the rate's state, too; accelerator.load_state(folder) resumes bit for bit
        history.append((loss.item(), lr.get_last_lr()[0]))
        accelerator.print(f"epoch {epoch}  loss {history[-1][0]:.3f}  rate {history[-1][1]:.4f}  steps {lr.steps}")
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
