"""A plain PyTorch loop with mixed precision, GradScaler, accumulation and clipping, at the rates of a schedule.

    python examples/plain_pytorch_amp.py [SCHEDULE.safetensors]

Without a file the schedule is untrained: it shows how things are connected, not how well they do.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import metastep as ms

MICRO_BATCHES, STEPS = 4, 60


def main(path: str | None = None) -> list[tuple[float, float]]:
    """Train; return the loss and the rate of each optimizer step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(data.target, device=device)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**20)  # too high: the first steps are skipped
    schedule = ms.MLRSNet() if path is None else ms.load_schedule(path)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=10, warmup_steps=10)

    history = []
    for _ in range(STEPS):
        losses = []
        for _ in range(MICRO_BATCHES):
            rows = torch.randint(len(labels), (16,), device=device)
            with torch.autocast(device, dtype=torch.float16):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            lr.observe(loss)  # the loss itself: neither divided nor scaled
            scaler.scale(loss / MICRO_BATCHES).backward()
            losses.append(loss.item())
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)  # writes the rate, unless it skips the step: then nothing moves, the schedule neither
        scaler.update()
        optimizer.zero_grad()
        history.append((sum(losses) / MICRO_BATCHES, lr.get_last_lr()[0]))
        if len(history) % 10 == 0:
            sys.stdout.write(f"step {len(history):3d}  loss {history[-1][0]:.3f}  rate {history[-1][1]:.4f}\n")
    sys.stdout.write(f"{lr.steps} steps taken, {STEPS - lr.steps} skipped by the scaler\n")
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
