"""What the synchronisation of two ranks costs: time and bytes of a step, beside the plain step under DDP or FSDP2.

    python benchmarks/collectives.py [--rounds 40] [--ranks 2] [--json FILE]

All cases take turns in one run. A case's time is that of a whole step, forward and backward pass included; its bytes
are those that one rank puts into messages beyond the plain step's. "alone" is a LearnedLR of this rank alone; a
meta-step, taken in every step here, has a validation pass in it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metastep as ms
from measuring import interleaved, write_record

BATCH, WIDTH, LAYERS = 32, 512, 4


class Traffic(TorchDispatchMode):
    """Counts what this rank puts into collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("c10d."):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    return nn.parallel.DistributedDataParallel(model) if kind == "DDP" else fully_shard(model)


def step_of(kind: str, case: str) -> Callable[[], None]:
    """One training step of a case, on a network of its own."""
    model = network(kind)
    x, y = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    levels = {"HyperSGD": ("global", "layer"), "HyperSGD, units": ("global", "layer", "unit")}.get(case)
    settings = {"lr": 1e-3, "momentum": 0.9}
    if levels is None:
        optimizer = torch.optim.SGD(model.parameters(), **settings)
    else:
        optimizer = ms.HyperSGD(model.parameters(), **settings, levels=levels)
    lr = None
    if case in ("LearnedLR", "LearnedLR, alone", "meta-step"):
        lr = ms.LearnedLR(
            optimizer, ms.MLRSNet(), num_classes=10, process_group=False if case == "LearnedLR, alone" else None
        )
    learner = ms.MetaLearner(lr, loss, every=1) if case == "meta-step" else None

    def step() -> None:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if lr is not None:
            lr.observe(value)
        if learner is None:
            optimizer.step()
        else:
            learner.step()

    for _ in range(3):
        step()
    return step


def parameter_count() -> int:
    return LAYERS * (WIDTH + 1) * WIDTH + (WIDTH + 1) * 10


def measure(rounds: int) -> list[dict[str, Any]]:
    results = []
    for kind in ("DDP", "FSDP2"):
        names = ("plain", "LearnedLR, alone", "LearnedLR", "meta-step", "HyperSGD", "HyperSGD, units")
        steps = {name: step_of(kind, name) for name in names}
        sent = {}
        for name, step in steps.items():
            with Traffic() as traffic:
                step()
            sent[name] = traffic.bytes
        times = interleaved(steps, rounds=rounds, calls=3, wait=dist.barrier)
        for name, time in times.items():
            ratio = time["min"] / times["plain"]["min"]
            extra = sent[name] - sent["plain"]
            results.append({"model": kind, "case": name, **time, "ratio_to_plain": ratio, "bytes_beyond_plain": extra})
        results[-len(names)]["bytes_of_the_plain_step"] = sent["plain"]
    return results


def worker(rank: int, ranks: int, folder: str, rounds: int, file: Path | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    results = measure(rounds)
    if rank == 0:
        print(f"{ranks} processes of one thread, gloo, {parameter_count():,} parameters: milliseconds a step, bytes")
        for result in results:
            print(
                f"  {result['model']:5} {result['case']:16} {result['min'] * 1e3:8.2f} {result['median'] * 1e3:8.2f}"
                f"   {result['ratio_to_plain']:5.2f} x plain   {result['bytes_beyond_plain']:10,}"
            )
        write_record(file, "cpu", {"ranks": ranks, "parameters": parameter_count(), "batch": BATCH, "steps": results})
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of 3 steps")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            worker, (options.ranks, folder, options.rounds, options.json), nprocs=options.ranks, start_method="spawn"
        )


if __name__ == "__main__":
    main()
