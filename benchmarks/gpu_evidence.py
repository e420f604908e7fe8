"""Two trainings of a size that needs a GPU, under schedules that are tuned for them and such as are not.

    python benchmarks/gpu_evidence.py [--device cuda] [--seconds 40] [--json results/gpu/evidence.json]
    python benchmarks/gpu_evidence.py --device cpu --tiny --json evidence.json

ResNet-18 on CIFAR-10 and a language model of 124 M weights on characters, both in bfloat16. Each run has as many steps
as fit into so many seconds, the same number for all of one training. The file is written after each run; a second call
makes only those that are missing. `--tiny` tries it all on a CPU, in a minute.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import metastep as ms
from measuring import write_record
from metastep.lab.tasks import Task, load_task
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.sequence import TransformerLanguageModel

SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
ADAMW = {"weight_decay": 0.05}
LANGUAGE = {"weight_decay": 0.1, "betas": (0.9, 0.95)}
WARMUP = 0.05  # of the run, where a rate was chosen by hand
UNTIMED = 10  # steps in which the device warms up


def optimizer_of(kind: str, model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    """A fused optimizer of torch, or ours."""
    if kind == "HyperSGD":
        return ms.HyperSGD(model.parameters(), lr=lr, **options)
    made: torch.optim.Optimizer = getattr(torch.optim, kind)(model.parameters(), lr=lr, fused=True, **options)
    return made


#: By training, then by name: the optimizer, its rate and options, and its schedule (None: it adapts its rate itself).
Row = tuple[str, float, dict[str, Any], str | None]
RUNS: dict[str, dict[str, Row]] = {
    "resnet18": {
        "SGD, cosine at 0.1": ("SGD", 0.1, SGD, "cosine"),
        "SGD, linear at 0.1": ("SGD", 0.1, SGD, "linear"),
        "SGD, calibrated": ("SGD", 0.1, SGD, "calibrated"),
        "AdamW, cosine at 1e-3": ("AdamW", 1e-3, ADAMW, "cosine"),
        "AdamW, calibrated": ("AdamW", 1e-3, ADAMW, "calibrated"),
        "SGD without momentum, MLR-SNet": ("SGD", 0.1, {"weight_decay": 5e-4}, "mlrsnet-cifar10"),
        "HyperSGD": ("HyperSGD", 0.1, SGD, None),
    },
    "language": {
        "AdamW, linear at 1e-4": ("AdamW", 1e-4, LANGUAGE, "linear"),
        "AdamW, linear at 3e-4": ("AdamW", 3e-4, LANGUAGE, "linear"),
        "AdamW, linear at 1e-3": ("AdamW", 1e-3, LANGUAGE, "linear"),
        "AdamW, calibrated": ("AdamW", 1e-3, LANGUAGE, "calibrated"),
    },
}


class Training:
    """A network, its batches and its loss."""

    def __init__(self, task: Task, make: Callable[[], nn.Module], device: str, batch_size: int) -> None:
        self.task, self.make, self.device, self.batch_size = task, make, device, batch_size

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless, the same for every run."""
        for batch in self.task.batches("train", batch_size=self.batch_size, device=self.device):
            yield batch.inputs, batch.targets

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split once."""
        task, device = self.task, torch.device(self.device)
        stream = task.data.stream("test", batch_size=500, seed=0, device=device, augment=False, shuffle=False)
        for batch in islice(stream, math.ceil(task.splits["test"] / 500)):
            yield batch.inputs, batch.targets

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """In bfloat16 on a GPU; images in the layout that convolutions on a GPU are fastest with."""
        if inputs.ndim == 4:
            inputs = inputs.to(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            outputs = model(inputs)
        return cross_entropy(outputs.float().flatten(0, -2), targets.flatten())


class Language(Training):
    """Windows at random places of a text, as language models are trained."""

    def __init__(self, task: Task, make: Callable[[], nn.Module], device: str, batch_size: int, length: int) -> None:
        super().__init__(task, make, device, batch_size)
        self.tokens, self.length = task.data.tokens_by_split["train"].to(device), length  # type: ignore[attr-defined]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless, the same for every run."""
        draw = torch.Generator().manual_seed(0)
        places = torch.arange(self.length + 1, device=self.device)
        while True:
            starts = torch.randint(len(self.tokens) - self.length - 1, (self.batch_size, 1), generator=draw)
            windows = self.tokens[starts.to(self.device) + places]
            yield windows[:, :-1], windows[:, 1:]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split once, in windows."""
        tokens = self.task.data.tokens_by_split["test"].to(self.device)  # type: ignore[attr-defined]
        count = len(tokens) // (self.length + 1)
        for windows in tokens[: count * (self.length + 1)].view(count, -1).split(self.batch_size):
            yield windows[:, :-1], windows[:, 1:]


def trainings(device: str, tiny: bool) -> dict[str, Training]:
    """Both, at their size, or so small that a CPU does them in seconds."""
    images = load_task("cifar10/resnet18", **({"train_size": 512, "outer_valid": 64} if tiny else {}))
    text = load_task("shakespeare/transformer")
    widths, blocks = ((8, 16), 1) if tiny else ((64, 128, 256, 512), 2)
    width, layers, heads, length = (32, 2, 2, 32) if tiny else (896, 13, 14, 512)

    def network() -> nn.Module:
        made = resnet(10, widths=widths, blocks=blocks, projection=True)
        return made.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def language_model() -> nn.Module:
        return TransformerLanguageModel(text.num_classes, width=width, layers=layers, heads=heads, context=length).to(
            device
        )

    return {
        "resnet18": Training(images, network, device, 32 if tiny else 256),
        "language": Language(text, language_model, device, 4 if tiny else 32, length),
    }


def train(training: Training, row: Row, steps: int) -> dict[str, Any]:
    """Train one network for more than ``UNTIMED`` steps, and test it."""
    kind, rate, options, schedule = row
    torch.manual_seed(0)
    model = training.make()
    optimizer = optimizer_of(kind, model, rate, options)
    lr = None
    if schedule is not None:
        warmup = round(WARMUP * steps) if schedule in ("cosine", "linear") else 0
        lr = ms.LearnedLR(optimizer, schedule, total_steps=steps, warmup_steps=warmup)
    wait = torch.cuda.synchronize if training.device == "cuda" else lambda: None
    losses: list[Tensor] = []
    start = 0.0
    for step, (inputs, targets) in enumerate(islice(training.batches(), steps)):
        if step == UNTIMED:
            wait()
            start = time.perf_counter()
        loss = training.loss(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if lr is not None:
            lr.observe(loss)
        optimizer.step()
        losses.append(loss.detach())
    wait()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds_a_step": (time.perf_counter() - start) / (steps - UNTIMED),
        "train_loss": float(torch.stack(losses[-max(1, steps // 20) :]).mean()),
        **tested(training, model),
    }


@torch.no_grad()
def tested(training: Training, model: nn.Module) -> dict[str, float]:
    """The mean loss and the share of right answers on the test split."""
    model.eval()
    right = count = 0
    total = 0.0
    for inputs, targets in training.test_batches():
        with torch.autocast(training.device, torch.bfloat16, enabled=training.device == "cuda"):
            outputs = model(inputs).float().flatten(0, -2)
        total += float(cross_entropy(outputs, targets.flatten(), reduction="sum"))
        right += int((outputs.argmax(-1) == targets.flatten()).sum())
        count += targets.numel()
    return {"test_loss": total / count, "test_accuracy": right / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=40.0, help="of training, for each run")
    parser.add_argument("--tiny", action="store_true", help="small networks, few steps")
    parser.add_argument("--json", type=Path, default=Path("results/gpu/evidence.json"))
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {name: {} for name in RUNS}
    if given.json.exists():
        found = json.loads(given.json.read_text())["results"]
    for name, training in trainings(given.device, given.tiny).items():
        done = found[name]
        steps = 2 * UNTIMED
        for label, row in RUNS[name].items():
            if label in done:
                continue
            if not done and not given.tiny:
                steps = round(given.seconds / train(training, row, 5 * UNTIMED)["seconds_a_step"])
            elif done:
                steps = next(iter(done.values()))["steps"]
            done[label] = train(training, row, steps)
            write_record(given.json, given.device, found)
            print(name, label, *(f"{key} {value:.4g}" for key, value in done[label].items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
