"""A schedule with its card in a folder: take one that comes with metastep, measure it here, write down what was found.

    python examples/share_a_schedule.py [FOLDER]

Works offline. The folder is ready for `metastep.integrations.hub.push_to_hub(schedule, "user/name", card=card)`.
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import metastep as ms
from metastep.integrations.hub import from_pretrained, save_pretrained
from metastep.schedules.model_card import ScheduleCard, Transfer

STEPS, SEEDS, BASE = 150, 3, 0.3  # the base rate: near the one with which the schedule begins


def train(schedule: ms.Schedule, seed: int) -> dict:
    """A run on the handwritten digits; a record as `metastep compare` writes it, as far as a card reads one."""
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=10, total_steps=STEPS)
    rates = []
    for _ in range(STEPS):
        rows = torch.randint(1500, (64,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        optimizer.step()
        rates += lr.get_last_lr()
    with torch.no_grad():
        answers = model(images[1500:])
    test = nn.functional.cross_entropy(answers, labels[1500:]).item()
    accuracy = (answers.argmax(1) == labels[1500:]).float().mean().item()
    return {"final": {"loss": test, "accuracy": accuracy}, "train": {"lr": rates}}


def main(folder: Path | None = None) -> tuple[Path, str]:
    """Measure, save with a card, read back; return the folder and the verdict on the card."""
    rivals = {
        "mlrsnet-cifar10": lambda: ms.load_schedule("mlrsnet-cifar10"),
        f"cosine from {BASE}": lambda: ms.Cosine(STEPS),
        f"constant {BASE}": ms.Constant,
    }
    records = {name: [train(make(), seed) for seed in range(SEEDS)] for name, make in rivals.items()}
    transfer = Transfer(
        title=f"A small network on scikit-learn's digits, {STEPS} steps of 64, SGD",
        records=records,
        ours="mlrsnet-cifar10",
        note="Nothing was tuned.",
    )
    card = ScheduleCard(
        name="digits-check",
        summary="The shipped mlrsnet-cifar10, measured on the digits.",
        transfer=[transfer],
        limits=["Three seeds of a short run on an easy task."],
    )
    folder = save_pretrained(
        rivals["mlrsnet-cifar10"](), folder or Path(tempfile.mkdtemp()) / "digits-check", card=card
    )
    again = from_pretrained(folder)
    sys.stdout.write(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}\n")
    sys.stdout.write(f"{transfer.verdict()}\nread back: {type(again).__name__} of {len(again.schedules)} snapshots\n")
    return folder, transfer.verdict()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
