"""A schedule that is learned while a network trains on several processes, and that survives the loss of one.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/ddp.py [FOLDER]

Each process takes its rows of every batch. The learning rate follows the mean of all their losses, and a meta-step
sends a loss and a slope. The first process writes a checkpoint; if torchrun starts all again, they resume from it.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import metastep as ms

STEPS, BATCH, SAVE_EVERY = 60, 64, 10  # of all processes together


def meet() -> tuple[int, int]:
    """Join the others; the prefix keeps what is left of an attempt that failed out of the next one."""
    store, rank, ranks = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group("gloo", store=dist.PrefixStore(attempt, store), rank=rank, world_size=ranks)
    return rank, ranks


def main(folder: str = "runs/ddp") -> None:
    """Train, save now and then, say how it goes."""
    rank, ranks = meet()
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    train, valid = slice(0, 1400), slice(1400, None)  # the schedule learns from the second

    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = torch.Generator().manual_seed(1)  # the same on all: they draw the same batch, and each takes its rows

    def loss_on(part: slice) -> torch.Tensor:
        rows = torch.randint(len(labels[part]), (BATCH,), generator=batches).chunk(ranks)[rank]
        return nn.functional.cross_entropy(model(images[part][rows]), labels[part][rows])

    lr = ms.LearnedLR(optimizer, ms.MLRSNet(), num_classes=10)
    learner = ms.MetaLearner(lr, lambda: loss_on(valid), every=5)

    parts = {"model": model.module, "optimizer": optimizer, "lr": lr, "learner": learner}
    checkpoint = Path(folder, "checkpoint.pt")
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        batches.set_state(saved["batches"])
        step = saved["step"]
    while step < STEPS:
        loss = loss_on(train)
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)  # this process's; the rate follows the mean of all
        learner.step()
        step += 1
        if step % SAVE_EVERY == 0 and rank == 0:
            sys.stdout.write(f"step {step:3d}  loss here {loss.item():.3f}  rate {lr.get_last_lr()[0]:.4f}\n")
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "batches": batches.get_state(), "step": step}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
