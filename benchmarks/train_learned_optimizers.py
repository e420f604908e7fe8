"""Learn the networks of L2L and RNNProp that come with the package, and try them on tasks that they never saw.

    python benchmarks/train_learned_optimizers.py --json results/learned-optimizers.json [--out FOLDER] [--try-only]

They learn on problems that are made up here: least squares in 10 dimensions, and perceptrons of sigmoid, tanh or ReLU
units on labels of a random network: RNNProp with one hidden layer of 8 to 24 units, L2L, which is told the scale of
gradients and does not carry over to wider networks otherwise, with one or two of 8 to 64. No data set is read for it.
Afterwards digits/mlp, wine/mlp and breast-cancer/linear are trained by them, by networks of the same kind that learned
nothing, and by SGD and Adam at five rates each; losses are read on outer_valid, over three seeds. The test split is not
read.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metastep.lab.baselines.learned as learned
from measuring import write_record
from metastep.lab.baselines.learned import Problem, learn_optimizer
from metastep.lab.tasks import load_task

PRETRAINED = Path(learned.__file__).parent
ACTIVATIONS = (torch.sigmoid, torch.tanh, torch.relu)
HELD_OUT = {"digits/mlp": 200, "wine/mlp": 100, "breast-cancer/linear": 100}
RATES = {"sgd": (0.01, 0.03, 0.1, 0.3, 1.0), "adam": (0.001, 0.003, 0.01, 0.03, 0.1)}
#: Optimizer, network, the rate that it is learned with, how many problems and how large they may be, and the rest.
KINDS: dict[str, tuple[Any, Any, float, int, tuple[int, int, int], dict[str, Any]]] = {
    "l2l": (learned.L2L, learned.L2LNetwork, 0.01, 160, (64, 64, 2), {}),
    "rnnprop": (
        learned.RNNProp, learned.RNNPropNetwork, 0.1, 200, (32, 24, 1), {"scaling": 1.0, "convex_helper": True}
    ),
}  # fmt: skip


def whole(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def least_squares(generator: torch.Generator) -> Problem:
    """|W theta - y|^2 with W and y from N(0, 1), as in the paper of L2L."""
    matrix, target, start = (torch.randn(*size, generator=generator) for size in ((10, 10), (10,), (10,)))
    return Problem(start=[start], loss=lambda parts: (matrix @ parts[0] - target).square().sum() / 10)


def perceptron(generator: torch.Generator, inputs: int, units: int, layers: int) -> Problem:
    """Cross-entropy of a perceptron on batches of 64 out of 512 points that a random network has labelled.

    Sizes are drawn up to ``inputs``, ``units`` and ``layers``.
    """
    inputs, units, classes = whole(generator, 4, inputs), whole(generator, 8, units), whole(generator, 2, 10)
    activation = ACTIVATIONS[whole(generator, 0, 2)]
    layers = whole(generator, 1, layers) if layers > 1 else 1
    x = torch.randn(512, inputs, generator=generator)
    teacher = torch.tanh(x @ torch.randn(inputs, 32, generator=generator) / math.sqrt(inputs))
    scores = teacher @ torch.randn(32, classes, generator=generator)
    y = (scores - scores.mean(0)).argmax(1)
    widths = [inputs, *[units] * layers, classes]
    start = []
    for before, after in itertools.pairwise(widths):
        start += [torch.randn(before, after, generator=generator) / math.sqrt(before), torch.zeros(after)]

    def loss(parts: Any) -> Tensor:
        rows = torch.randint(512, (64,), generator=generator)
        hidden = x[rows]
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            hidden = activation(hidden @ weight + bias)
        return torch.nn.functional.cross_entropy(hidden @ parts[-2] + parts[-1], y[rows])

    return Problem(start=start, loss=loss)


def sampler(inputs: int, units: int, layers: int) -> Callable[[torch.Generator], Problem]:
    """Draws least squares once in four times, and perceptrons."""

    def sample(generator: torch.Generator) -> Problem:
        if whole(generator, 0, 3) == 0:
            return least_squares(generator)
        return perceptron(generator, inputs, units, layers)

    return sample


def train(name: str, most: int | None, seed: int, out: Path) -> dict[str, Any]:
    """Learn one network and write it."""
    _, kind, lr, problems, largest, extra = KINDS[name]
    problems = problems if most is None else min(most, problems)
    torch.manual_seed(seed)
    network, begun = kind(), time.perf_counter()

    def watch(number: int, loss: float) -> None:
        if (number + 1) % 50 == 0:
            seconds = time.perf_counter() - begun
            print(f"{name} {number + 1}/{problems} {seconds:.0f} s, last loss {loss:.3f}", flush=True)

    ends = learn_optimizer(
        network, sampler(*largest), lr=lr, problems=problems, meta_lr=3e-3, seed=seed, watch=watch, **extra
    )
    learned.save_update_network(network, out / f"{name}.safetensors")
    blocks = [statistics.median(ends[k : k + 50]) for k in range(0, len(ends), 50)]
    return {
        "problems": problems,
        "seed": seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "median_last_loss_of_50": [round(block, 4) for block in blocks],
        "bytes": (out / f"{name}.safetensors").stat().st_size,
    }


def held_out(task: Any, steps: int, make: Any, seed: int) -> float:
    """The loss on outer_valid after so many steps."""
    torch.manual_seed(seed)
    model = task.make_model()
    optimizer, stream = make(model.parameters()), task.batches("train", seed=seed)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(stream)).backward()
        optimizer.step()
    return float(task.evaluate(model, "outer_valid")["loss"])


def entrants(out: Path) -> dict[str, Any]:
    """By name, what makes the optimizer."""
    found: dict[str, Any] = {}
    for name, (optimizer, kind, *_) in KINDS.items():
        trained = learned.load_update_network(out / f"{name}.safetensors")
        torch.manual_seed(0)
        for label, network in ((name, trained), (f"{name}, untrained", kind())):
            found[label] = lambda p, make=optimizer, network=network: make(p, network=network)
    for lr in RATES["sgd"]:
        found[f"sgd {lr:g}"] = lambda p, lr=lr: torch.optim.SGD(p, lr=lr)
    for lr in RATES["adam"]:
        found[f"adam {lr:g}"] = lambda p, lr=lr: torch.optim.Adam(p, lr=lr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, help="at most so many for each; default: as many as it was learned on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PRETRAINED)
    parser.add_argument("--try-only", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = {}
    if not arguments.try_only:
        arguments.out.mkdir(parents=True, exist_ok=True)
        training = {name: train(name, arguments.problems, arguments.seed, arguments.out) for name in KINDS}
    losses: dict[str, dict[str, list[float]]] = {}
    for name, steps in HELD_OUT.items():
        task = load_task(name)
        losses[name] = {
            entrant: [held_out(task, steps, make, seed) for seed in range(3)]
            for entrant, make in entrants(arguments.out).items()
        }
        for entrant, values in losses[name].items():
            print(f"{name:22s} {entrant:20s} {statistics.median(values):.4f}", flush=True)
    write_record(arguments.json, "cpu", {"training": training, "steps": HELD_OUT, "outer_valid_loss": losses})


if __name__ == "__main__":
    main()
