"""What a meta-step costs: time and peak memory, beside plain training and beside autograd through the whole step.

    python benchmarks/meta_step.py [--device cuda] [--rounds 12] [--json FILE]

A ResNet-18 for 32 x 32 images at batch 16 under SGD with momentum. ``plain`` is a training iteration whose rate an
MLR-SNet sets; ``meta`` learns in every iteration; ``autograd`` takes the same step with create_graph and
functional_call, as the published code does it. All take turns in one run. Peak memory is measured in a process for each
case: on the CPU (Linux) the peak of the resident set above that before the first iteration, with a tight malloc; on
CUDA what the allocator reports.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import metastep as ms
from measuring import interleaved, write_record
from metastep.lab.tasks.networks.resnet import resnet

EVERY = 100
BATCH = 16
PEAKS = ("plain", "meta", "meta, gradients kept", "autograd")
WIDTHS = {"resnet18": (64, 128, 256, 512), "small": (8, 16)}


class Case:
    """A network, two batches, and one way to train."""

    def __init__(self, network: str, device: str, *, keep_gradients: bool = False) -> None:
        torch.manual_seed(0)
        self.model = resnet(10, widths=WIDTHS[network], blocks=2, projection=True).to(device)
        self.inputs, self.validation_inputs = torch.randn(2, BATCH, 3, 32, 32, device=device)
        self.targets, self.validation_targets = torch.randint(10, (2, BATCH), device=device)
        rate = 0.1 if device == "cpu" else torch.tensor(0.1, device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        schedule = ms.MLRSNet()
        self.lr = ms.LearnedLR(self.optimizer, schedule, initial_loss=2.3, num_classes=10)
        self.learner = ms.MetaLearner(self.lr, self.validation_loss, every=1, keep_gradients=keep_gradients)

    def validation_loss(self) -> Tensor:
        """On the other batch."""
        return cross_entropy(self.model(self.validation_inputs), self.validation_targets)

    def backward(self) -> None:
        """Forward and backward pass on the training batch, gradients being set to None in between, as documented."""
        loss = cross_entropy(self.model(self.inputs), self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.lr.observe(loss)

    def plain(self) -> None:
        """An iteration that learns nothing about its rate."""
        self.backward()
        self.optimizer.step()

    def meta(self) -> None:
        """An iteration with a meta-step."""
        self.backward()
        self.learner.step()

    def autograd(self) -> None:
        """The meta-step by brute force, a virtual step in one graph, and then the plain step."""
        names = dict(self.model.named_parameters())
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        loss = cross_entropy(functional_call(self.model, (names, buffers), (self.inputs,)), self.targets)
        gradients = torch.autograd.grad(loss, list(names.values()), create_graph=True)
        rate, _ = self.lr.query_with_graph(loss.detach(), self.lr.state)
        ahead = {}
        for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
            direction = gradient + 5e-4 * parameter
            if "momentum_buffer" in self.optimizer.state[parameter]:
                direction = direction + 0.9 * self.optimizer.state[parameter]["momentum_buffer"]
            ahead[name] = parameter - rate * direction
        output = functional_call(self.model, (ahead, buffers), (self.validation_inputs,))
        validation = cross_entropy(output, self.validation_targets)
        meta = self.learner.meta_optimizer
        weights = list(self.lr.schedule.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(validation, weights), strict=True):
            weight.grad = gradient
        meta.step()
        self.plain()


def wait_for(device: str) -> Callable[[], Any]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def times(network: str, device: str, rounds: int) -> list[dict[str, Any]]:
    cases = {kind: getattr(Case(network, device), kind) for kind in ("plain", "meta", "autograd")}
    found = interleaved(cases, rounds=rounds, calls=1, wait=wait_for(device))
    results = []
    for kind, time in found.items():
        ratios = {statistic: value / found["plain"][statistic] for statistic, value in time.items()}
        results.append({"case": kind, **time, "ratio": ratios})
    for statistic in ("min", "median"):
        plain = found["plain"][statistic]
        averaged = ((EVERY - 1) * plain + found["meta"][statistic]) / EVERY / plain
        results[1]["ratio"][f"{statistic}, every={EVERY}"] = averaged
    return results


def peak_bytes(kind: str, network: str, device: str) -> int:
    """Peak memory of four iterations above what was there before, in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, "--network", network, "--device", device]
    tight = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=tight)
    return int(json.loads(done.stdout)["peak"])


def resident(field: str) -> int:
    """Bytes of the resident set, now (VmRSS) or at its peak (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def report_peak(kind: str, network: str, device: str) -> None:
    case = Case(network, device, keep_gradients=kind == "meta, gradients kept")
    kind = kind.partition(",")[0]
    if device == "cuda":
        getattr(case, kind)()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            getattr(case, kind)()
        peak = torch.cuda.max_memory_allocated()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        for _ in range(4):
            getattr(case, kind)()
        peak = resident("VmHWM") - before
    sys.stdout.write(json.dumps({"peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--network", choices=tuple(WIDTHS), default="resnet18")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write a record to this file")
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        report_peak(options.peak, options.network, options.device)
        return
    results = []
    for threads in (1, 2) if options.device == "cpu" else (1,):
        torch.set_num_threads(threads)
        print(f"{options.device}, {threads} thread{'s' * (threads > 1)}: milliseconds an iteration (smallest, median)")
        for time in times(options.network, options.device, options.rounds):
            ratios = "  ".join(f"{ratio:.3f} ({name})" for name, ratio in time["ratio"].items())
            print(f"  {time['case']:9} {time['min'] * 1e3:8.1f} {time['median'] * 1e3:8.1f}   x plain: {ratios}")
            results.append({"threads": threads, **time})
    weights = sum(p.numel() * p.element_size() for p in Case(options.network, "cpu").model.parameters())
    print(f"peak memory (parameters: {weights / 2**20:.1f} MiB)")
    plain = 0
    for kind in PEAKS:
        peak = peak_bytes(kind, options.network, options.device)
        plain = plain or peak
        copies = (peak - plain) / weights
        print(f"  {kind:22} {peak / 2**20:8.1f} MiB   plain {copies:+.2f} copies of the parameters")
        results.append({"case": kind, "peak_bytes": peak, "parameter_bytes": weights, "copies_above_plain": copies})
    write_record(options.json, options.device, results)


if __name__ == "__main__":
    main()
