"""What a step of the hypergradient optimizers costs, beside torch.optim's foreach and fused kernels.

    python benchmarks/optim_step.py [--device cuda] [--threads 1 2] [--rounds 15] [--end-to-end] [--json FILE]

ResNet-18 for small images (62 tensors, 11.2 M parameters), a perceptron of 100 tensors (3.3 M) and a transformer of
four layers (48 tensors, 12.6 M). All optimizers of a network take turns in one run on constant gradients; ratios are of
medians, against torch's fused kernel of the same base. Processor time of the process is shown beside the wall clock,
because other work on the machine lengthens only the latter; on one thread it is the fairer figure. `bound` is the ratio
of the numbers that must be read and written, counted as tensors per parameter. With --end-to-end whole training steps
of ResNet-18 at batch 128 are timed as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from measuring import interleaved, write_record
from measuring.published import PublishedAdamHD, PublishedSGDHD
from metastep.lab.tasks.networks.resnet import resnet
from metastep.optim import HyperAdam, HyperSGD

LEVELS = {
    "global": ("global",),
    "g+l": ("global", "layer"),
    "g+l+u": ("global", "layer", "unit"),
    "g+l+p": ("global", "layer", "parameter"),
    "g+l+u+p": ("global", "layer", "unit", "parameter"),
}
# Tensors read and written per parameter, relative to the plain optimizer's 5 and 7.
BOUND = {"sgd": {"coarse": 6 / 5, "fine": 9 / 5}, "adam": {"coarse": 9 / 7, "fine": 12 / 7}}


def resnet18() -> torch.nn.Module:
    return resnet(10, widths=(64, 128, 256, 512), blocks=2, projection=True)


def perceptron() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(50)))


def transformer() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet18": resnet18,
    "perceptron": perceptron,
    "transformer": transformer,
}


def optimizers(network: Callable[[], torch.nn.Module], base: str, device: str) -> dict[str, torch.optim.Optimizer]:
    """One of each, every one with parameters and gradients of its own."""

    def parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        result = list(network().to(device).parameters())
        for p in result:
            p.grad = torch.randn_like(p) * 1e-3
        return result

    base_class, ours, extra = {
        "sgd": (torch.optim.SGD, HyperSGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, HyperAdam, {}),
    }[base]
    result: dict[str, torch.optim.Optimizer] = {
        "fused": base_class(parameters(), lr=1e-6, fused=True, **extra),
        "foreach": base_class(parameters(), lr=1e-6, foreach=True, **extra),
    }
    for name, levels in LEVELS.items():
        result[name] = ours(parameters(), lr=1e-6, levels=levels, compiled=True, **extra)
    published = {"sgd": PublishedSGDHD, "adam": PublishedAdamHD}[base]
    result["published HD"] = published(parameters(), lr=1e-6, **extra)
    result["g+l uncompiled"] = ours(parameters(), lr=1e-6, levels=LEVELS["g+l"], compiled=False, **extra)
    return result


def timed(steps: dict[str, Callable[[], Any]], rounds: int, wait: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Wall and processor seconds a call, medians over the rounds, cases in turn."""
    wall = interleaved(steps, rounds=rounds, calls=1, wait=wait)
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            processor[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in processor.items()}
    return {name: {"wall": wall[name]["median"], "wall_min": wall[name]["min"], "cpu": medians[name]} for name in steps}


def end_to_end(rounds: int, device: str, wait: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Whole training steps of ResNet-18 at batch 128 on random images."""
    x, y = torch.randn(128, 3, 32, 32, device=device), torch.randint(10, (128,), device=device)
    steps = {}
    for name in ("plain", "hyper"):
        torch.manual_seed(0)
        model = resnet18().to(device)
        options = {"lr": 0.01, "momentum": 0.9}
        optimizer = (
            torch.optim.SGD(model.parameters(), fused=True, **options)
            if name == "plain"
            else HyperSGD(model.parameters(), levels=LEVELS["g+l+u"], compiled=True, **options)
        )

        def step(model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        steps[name] = step
    return timed(steps, rounds, wait)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wait = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    results: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.networks:
            for base in ("sgd", "adam"):
                cases = optimizers(NETWORKS[name], base, arguments.device)
                seconds = timed({key: o.step for key, o in cases.items()}, arguments.rounds, wait)
                print(f"\n{name}, {base}, {threads} thread(s)")
                for case, times in seconds.items():
                    kind = "fine" if case.endswith("p") else "coarse"
                    bound = 1.0 if case in ("fused", "foreach", "published HD") else BOUND[base][kind]
                    ratios = {clock: times[clock] / seconds["fused"][clock] for clock in times}
                    print(
                        f"  {case:15s} {times['wall'] * 1e3:8.2f} ms x{ratios['wall']:.2f}   cpu "
                        f"{times['cpu'] * 1e3:8.2f} ms x{ratios['cpu']:.2f}   bound x{bound:.2f}"
                    )
                    results.append(
                        {"network": name, "base": base, "threads": threads, "case": case, "bound": bound}
                        | {"seconds": times, "ratio_to_fused": ratios}
                    )
                del cases
    if arguments.end_to_end:
        torch.set_num_threads(max(arguments.threads))
        seconds = end_to_end(5, arguments.device, wait)
        ratio = {clock: seconds["hyper"][clock] / seconds["plain"][clock] for clock in seconds["plain"]}
        print(f"\nResNet-18, batch 128, whole steps: wall x{ratio['wall']:.3f}, cpu x{ratio['cpu']:.3f}")
        results.append({"network": "resnet18", "end_to_end": seconds, "ratio": ratio})
    write_record(arguments.json, arguments.device, results)


if __name__ == "__main__":
    main()
