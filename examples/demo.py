"""The first five minutes: what metastep promises, tried on this machine.

    python examples/demo.py [--out demo] [--steps 400] [--seeds 3] [--workers 2]

1. `LearnedLR(optimizer)` needs no rate: the same runs whatever rate the optimizer was made with.
2. `HyperSGD` mends a rate that is 100 times too small while it trains.
3. `MLRSNet`, a schedule that reads the loss, is learned while one network trains and sets the rate of another.

Each part ends in a verdict that is computed from the numbers of this run; it says so where ours lost. The folder gets a
page with the pictures, and the learned schedule. Nothing is written elsewhere.

The data are `digits.csv.gz` beside this file: the copy in scikit-learn of the test set of "Optical Recognition of
Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import metastep as ms
from metastep.lab.report import charts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

BATCH = 64
#: The usual rate of each optimizer; wrong by 100 either way are usual / 100 and usual * 100.
USUAL = {"AdamW": 1e-3, "SGD": 1e-2}
WRONG_BY = 100
#: Peak rates that the cosine may choose from: eight, half a decade apart, from 1/30 of the usual one to 100 times it.
TRIALS = tuple(10 ** (k / 2) for k in range(-3, 5))
#: The rate beside the learned schedule, and what it may be replaced by.
CONSTANT = 0.1
CONSTANTS = (0.01, 0.03, 0.1, 0.3)
#: A meta-update in every so many steps, and its rate.
EVERY, META_LR = 5, 0.01
NOTHING_LEARNED = math.log(10)

OURS, PLAIN, TUNED, OTHER = "#d1480b", "#5f6670", "#0a6fb3", "#0b8a66"


# ---- training


def mlp() -> nn.Module:
    """A perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def convnet() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "convnet": convnet}


@functools.cache
def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """1,797 images of 8 x 8 pixels, shuffled once and for all, in four splits."""
    table = torch.tensor(np.loadtxt(Path(__file__).with_name("digits.csv.gz"), delimiter=","))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    images = ((table[:, :-1].float() - 4.884) / 6.017).view(-1, 1, 8, 8)
    labels = table[:, -1].long()
    ends = {"train": (0, 1000), "learn_schedule": (1000, 1200), "valid": (1200, 1400), "test": (1400, 1797)}
    return {name: (images[low:high], labels[low:high]) for name, (low, high) in ends.items()}


def loss_of(model: nn.Module, split: str, size: int | None = None) -> Tensor:
    """The loss of a random batch, or of the whole split."""
    images, labels = digits()[split]
    if size is not None:
        rows = torch.randint(len(labels), (size,))
        images, labels = images[rows], labels[rows]
    return functional.cross_entropy(model(images), labels)


def evaluate(model: nn.Module, split: str) -> float:
    """The loss of the whole split; infinite if it is not a number."""
    with torch.no_grad():
        loss = loss_of(model, split).item()
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and how."""

    network: str = "mlp"
    optimizer: str
    lr: float
    momentum: float = 0.9  # of SGD and HyperSGD
    schedule: str = ""  # "", "LearnedLR", "cosine", or the file of a schedule
    steps: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run; a loss that is not a number is infinite."""

    valid: float
    test: float
    curve: list[tuple[int, float]]  # step, validation loss
    rates: list[float]  # one a step


def train(run: Run) -> Result:
    """Train a network, and evaluate it."""
    torch.manual_seed(run.seed)
    model = NETWORKS[run.network]()
    optimizer = make_optimizer(run, model)
    lr = attach(run, optimizer)
    curve, rates = [(0, evaluate(model, "valid"))], []
    for step in range(1, run.steps + 1):
        loss = loss_of(model, "train", BATCH)
        optimizer.zero_grad()
        loss.backward()
        if lr is not None:
            lr.observe(loss)
        optimizer.step()
        rates.append(float(lr.get_last_lr()[0] if lr is not None else rate_of(optimizer)))
        if step % max(1, run.steps // 20) == 0:
            curve.append((step, evaluate(model, "valid")))
    return Result(valid=evaluate(model, "valid"), test=evaluate(model, "test"), curve=curve, rates=rates)


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run."""
    if run.optimizer == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=run.lr)
    if run.optimizer == "SGD":
        return torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum)
    return ms.HyperSGD(model.named_parameters(), lr=run.lr, momentum=run.momentum)


def attach(run: Run, optimizer: torch.optim.Optimizer) -> ms.LearnedLR | None:
    """What sets the optimizer's rate, if anything does."""
    if not run.schedule:
        return None
    if run.schedule == "LearnedLR":
        return ms.LearnedLR(optimizer, total_steps=run.steps)
    if run.schedule == "cosine":
        return ms.LearnedLR(optimizer, ms.Cosine(), total_steps=run.steps, warmup_steps=max(1, run.steps // 20))
    return ms.LearnedLR(optimizer, ms.load_schedule(run.schedule), num_classes=10, total_steps=run.steps)


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The rate in use; of HyperSGD the one that all parameters share."""
    rates = optimizer.rates()[0]["global"] if isinstance(optimizer, ms.HyperSGD) else optimizer.param_groups[0]["lr"]
    return float(rates)


def learn_schedule(path: Path, steps: int) -> list[float]:
    """Learn a schedule while a perceptron trains, save three snapshots of it, return the rates of that run.

    A snapshot from the beginning, the middle and the end each set the rate in a third of a later run.
    """
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=CONSTANT)
    lr = ms.LearnedLR(optimizer, ms.MLRSNet(), num_classes=10)
    learner = ms.MetaLearner(lr, lambda: loss_of(model, "learn_schedule", 100), every=EVERY, meta_lr=META_LR)
    rates: list[float] = []
    snapshots = []
    for step in range(1, steps + 1):
        loss = loss_of(model, "train", BATCH)
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        learner.step()
        rates += lr.get_last_lr()
        if step in (max(1, steps // 20), max(2, steps // 2), steps):
            snapshot = ms.MLRSNet(scale=ms.ScaleRule(mode="freeze"))
            snapshot.load_state_dict(lr.schedule.state_dict())
            snapshots.append(snapshot)
    ms.save_schedule(ms.Phased(snapshots), path)
    return rates


# ---- verdicts


def number(value: float) -> str:
    """A loss in words."""
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def rate(value: float) -> str:
    """A rate in words."""
    return f"{value:.2g}"


def mean(values: Sequence[float]) -> float:
    """The mean, infinite if one of the values is."""
    return sum(values) / len(values)


def span(values: Sequence[float]) -> str:
    """One number for all, or the lowest and the highest."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def against(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How the losses of our seeds compare with those of others: "better", "worse" or "not told apart".

    Two methods are told apart only where the ranges of their seeds, lowest to highest, do not overlap.
    """
    if max(ours) < min(theirs):
        return "better"
    return "worse" if min(ours) > max(theirs) else "not told apart"


def is_to(result: str) -> str:
    """A result of `against` as a verb, which the other follows."""
    return {"better": "is better than", "worse": "is worse than"}.get(result, "is not told apart from")


def listed(values: Iterable[float], word: Callable[[float], str]) -> str:
    """Three numbers in words."""
    *first, last = (word(value) for value in values)
    return f"{', '.join(first)} and {last}"


def verdict_on_rates(name: str, ours: dict[float, list[float]], plain: dict[float, list[float]], peak: float,
                     tuned: list[float]) -> str:  # fmt: skip
    """One part of the first verdict: an optimizer with LearnedLR from several rates, without, and with the cosine."""
    means, others = [mean(losses) for losses in ours.values()], [mean(losses) for losses in plain.values()]
    every = [loss for losses in ours.values() for loss in losses]
    result = against(every, tuned)
    same = "the same" if max(means) <= 1.01 * min(means) else "not the same"
    return (
        f"{name}: from the rates {listed(ours, rate)} LearnedLR reaches {same} test loss ({span(means)}), "
        f"{name} alone {listed(others, number)}; LearnedLR {is_to(result)} the cosine with the best of {len(TRIALS)} "
        f"peak rates ({number(mean(tuned))} at {rate(peak)})"
    )


def verdict_on_mending(start: float, ours: list[float], wrong: list[float], usual: list[float], last: float) -> str:
    """The second verdict: HyperSGD from a wrong rate, SGD at it, and SGD at the usual one."""
    result = against(ours, usual)
    mended = {
        "better": "The rate is mended in part" if result == "worse" else "The rate is mended",
        "worse": "The rate is made worse",
        "not told apart": "The rate is not mended",
    }[against(ours, wrong)]
    return (
        f"{mended}: from {rate(start)}, HyperSGD moves to {rate(last)} and ends at a test loss of {number(mean(ours))}"
        f", SGD that stays there at {number(mean(wrong))}; HyperSGD {is_to(result)} SGD at the usual rate "
        f"({number(mean(usual))} at {rate(start * WRONG_BY)})."
    )


def verdict_on_carrying(ours: list[float], constant: list[float], best_rate: float, best: list[float]) -> str:
    """The third verdict: a learned schedule on another network, a constant rate, and the best of some constants."""
    result = {
        "better": f"wins against the constant {rate(CONSTANT)}",
        "worse": f"loses to the constant {rate(CONSTANT)}",
        "not told apart": f"is not told apart from the constant {rate(CONSTANT)}",
    }[against(ours, constant)]
    to_best = against(ours, best)
    return (
        f"On the other network the learned schedule {result}: test loss {number(mean(ours))} against "
        f"{number(mean(constant))}; it {is_to(to_best)} the best of {len(CONSTANTS)} constant rates "
        f"({number(mean(best))} at {rate(best_rate)})."
    )


# ---- the three parts: each returns its verdict and its charts

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the page and the terminal show of a part."""

    title: str
    about: str
    verdict: str
    legend: dict[str, str]  # name: colour
    charts: dict[str, Any]  # title: chart


def run_all(each: Any, runs: Sequence[Run], seeds: int) -> dict[Run, list[Result]]:
    """Train every run with every seed."""
    jobs = [replace(run, seed=seed) for run in runs for seed in range(seeds)]
    results = list(each(train, jobs))
    return {run: results[place * seeds : (place + 1) * seeds] for place, run in enumerate(runs)}


def tests(results: Sequence[Result]) -> list[float]:
    """The test losses of the seeds."""
    return [result.test for result in results]


def best_of(runs: Sequence[Run], found: dict[Run, list[Result]]) -> Run:
    """The run with the lowest mean validation loss."""
    return min(runs, key=lambda run: mean([result.valid for result in found[run]]))


def any_rate(each: Any, steps: int, seeds: int) -> Part:
    """One network from rates that are wrong by 100 either way."""
    sentences, drawn = [], {}
    names = {"LearnedLR": OURS, "the optimizer alone": PLAIN, f"cosine, best of {len(TRIALS)} peak rates": TUNED}
    for name, usual in USUAL.items():
        rates = (usual / WRONG_BY, usual, usual * WRONG_BY)
        ours = [Run(optimizer=name, lr=lr, schedule="LearnedLR", steps=steps) for lr in rates]
        plain = [Run(optimizer=name, lr=lr, steps=steps) for lr in rates]
        cosines = [Run(optimizer=name, lr=usual * times, schedule="cosine", steps=steps) for times in TRIALS]
        found = run_all(each, [*ours, *plain, *cosines], seeds)
        tuned = best_of(cosines, found)
        shown = {"SGD": "SGD with momentum"}.get(name, name)
        sentences.append(
            verdict_on_rates(
                shown,
                {run.lr: tests(found[run]) for run in ours},
                {run.lr: tests(found[run]) for run in plain},
                tuned.lr,
                tests(found[tuned]),
            )
        )
        labels = list(names)
        rows = [
            {"method": label, "x": lr, **low_mean_high(tests(found[run]))}
            for label, runs in zip(labels, (ours, plain, [replace(tuned, lr=lr) for lr in rates]), strict=True)
            for lr, run in zip(rates, runs if label != labels[2] else [tuned] * 3, strict=True)
        ]
        drawn[f"{shown}: test loss by initial rate"] = chart(rows, names, "initial rate", log_x=True, points=True)
    return Part(
        title="Any initial rate",
        about=f"LearnedLR(optimizer, total_steps={steps}) beside the optimizer alone, made with the usual rate, with "
        f"{WRONG_BY} times less and {WRONG_BY} times more; and a cosine with warm-up, given the best of {len(TRIALS)} "
        f"peak rates, which costs {len(TRIALS)} runs.",
        verdict=f"{'; '.join(sentences)}.",
        legend=names,
        charts=drawn,
    )


def mended_rate(each: Any, steps: int, seeds: int) -> Part:
    """A rate that is 100 times too small, with and without HyperSGD."""
    usual = USUAL["SGD"]
    start = usual / WRONG_BY
    hyper = Run(optimizer="HyperSGD", lr=start, steps=steps)
    wrong, right = Run(optimizer="SGD", lr=start, steps=steps), Run(optimizer="SGD", lr=usual, steps=steps)
    found = run_all(each, [hyper, wrong, right], seeds)
    last = mean([result.rates[-1] for result in found[hyper]])
    named = {f"HyperSGD from {rate(start)}": hyper, f"SGD at {rate(start)}": wrong, f"SGD at {rate(usual)}": right}
    names = dict(zip(named, (OURS, PLAIN, TUNED), strict=True))
    return Part(
        title="A wrong rate, mended while training",
        about=f"HyperSGD takes the place of SGD with momentum, at a rate {WRONG_BY} times too small.",
        verdict=verdict_on_mending(start, tests(found[hyper]), tests(found[wrong]), tests(found[right]), last),
        legend=names,
        charts={
            "Validation loss": chart(losses(named, found), names, "step"),
            "Rate": chart(rates_of(named, found), names, "step"),
        },
    )


def carried_schedule(each: Any, steps: int, seeds: int, path: Path) -> Part:
    """A schedule that is learned on a perceptron and sets the rate of a convnet."""
    learn_schedule(path, 2 * steps)
    base = Run(network="convnet", optimizer="SGD", lr=CONSTANT, momentum=0.0, steps=steps)
    learned = replace(base, schedule=str(path))
    constants = [replace(base, lr=lr) for lr in CONSTANTS]
    found = run_all(each, [learned, *constants], seeds)
    best = best_of(constants, found)
    named = {"learned on the perceptron": learned, f"constant {rate(CONSTANT)}": base}
    if best != base:
        named[f"best constant, {rate(best.lr)}"] = best
    names = dict(zip(named, (OURS, PLAIN, TUNED), strict=False))
    return Part(
        title="A schedule, learned on one network and used for another",
        about=f"MLRSNet is learned by MetaLearner in {2 * steps} steps of a perceptron, and sets the rate of a "
        "convolutional network, without learning. The base is SGD without momentum.",
        verdict=verdict_on_carrying(tests(found[learned]), tests(found[base]), best.lr, tests(found[best])),
        legend=names,
        charts={
            "Validation loss of the convolutional network": chart(losses(named, found), names, "step"),
            "Rate": chart(rates_of(named, found), names, "step"),
        },
    )


# ---- charts and page


def low_mean_high(values: Sequence[float]) -> Row:
    """A point with the range of its seeds; a loss above what a network without training has is drawn there."""
    seen = [min(value, 2 * NOTHING_LEARNED) for value in values]
    return {"mean": mean(seen), "low": min(seen), "high": max(seen), "said": number(mean(values))}


def losses(named: dict[str, Run], found: dict[Run, list[Result]]) -> list[Row]:
    """The validation curves."""
    return [
        {"method": name, "x": points[0][0], **low_mean_high([loss for _, loss in points])}
        for name, run in named.items()
        for points in zip(*(result.curve for result in found[run]), strict=True)
    ]


def rates_of(named: dict[str, Run], found: dict[Run, list[Result]]) -> list[Row]:
    """The rates, at most 100 points a line."""
    rows = []
    for name, run in named.items():
        columns = list(zip(*(result.rates for result in found[run]), strict=True))
        for step in range(0, len(columns), max(1, len(columns) // 100)):
            values = columns[step]
            row = {"mean": mean(values), "low": min(values), "high": max(values), "said": rate(mean(values))}
            rows.append({"method": name, "x": step + 1, **row})
    return rows


def chart(rows: list[Row], names: dict[str, str], along: str, *, log_x: bool = False, points: bool = False) -> Any:
    """Lines of means with the range of the seeds; the page draws the legend."""
    kind, ticks = ("log", sorted({row["x"] for row in rows})) if log_x else ("linear", None)
    axis = alt.Axis(grid=False, tickCount=5, format="~g" if log_x else "d", **({"values": ticks} if ticks else {}))
    x = alt.X("x:Q", title=along, axis=axis, scale=alt.Scale(type=kind, nice=False, zero=False, padding=6))
    scale = alt.Scale(type="log", nice=False)
    named: Any = {"condition": {"test": "datum.label", "value": 1}, "value": 0}  # no grid of ticks without a number
    y = alt.Y("mean:Q", title=None, scale=scale, axis=alt.Axis(format="~g", tickCount=4, gridOpacity=named))
    colour = alt.Color("method:N", legend=None, scale=alt.Scale(domain=list(names), range=list(names.values())))
    dashes = [[5, 4] if hue == TUNED else [1, 0] for hue in names.values()]  # so that a line below it is seen
    dash = alt.StrokeDash("method:N", legend=None, scale=alt.Scale(domain=list(names), range=dashes))
    tip = [alt.Tooltip("method:N"), alt.Tooltip("x:Q", title=along, format="~g"), alt.Tooltip("said:N", title="mean")]
    whole = alt.Chart(alt.Data(values=rows))
    layers = [
        whole.mark_area(opacity=0.16).encode(x, alt.Y("low:Q", scale=scale, title=None), alt.Y2("high:Q"), colour),
        whole.mark_line(point={"size": 55} if points else False).encode(x, y, colour, dash),
        whole.mark_point(opacity=0, size=120).encode(x, y, tooltip=tip),
    ]
    made = alt.layer(*layers).to_dict(validate=False)
    made.pop("config", None)
    return made | {"width": "container", "height": 230}


STYLE = """
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 14px 2px 12px; padding: 0; list-style: none; }
.key i { display: inline-block; width: 22px; height: 4px; margin-right: 8px; vertical-align: middle; }
.verdict { max-width: 58em; margin: 6px 0 0; font-size: 1.06rem; font-weight: 500; }
section h2 { margin-bottom: 4px; }
"""
SCRIPT = """
const {charts, configurations} = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const draw = () => charts.forEach((made, place) => vegaEmbed(document.getElementById("chart-" + place), made, {
  mode: "vega-lite", ast: true, actions: false, config: configurations[dark.matches ? "dark" : "light"],
  tooltip: {theme: dark.matches ? "dark" : "light"}}));
dark.addEventListener("change", draw);
draw();
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>metastep: the first five minutes</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="eyebrow">metastep demo</p>
<h1>The first five minutes</h1>
<p class="rest">{about}</p>
</header>
<main>
{parts}
</main>
<footer>Written by metastep {version}. This page holds everything that it shows, and loads nothing.</footer>
<script>{vega}</script>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write_page(parts: Sequence[Part], about: str, path: Path) -> None:
    """Write a page that carries its script, its style and its numbers."""
    drawn: list[Any] = []
    sections = []
    for place, part in enumerate(parts, start=1):
        figures = ""
        for title, made in part.charts.items():
            figures += f'<figure class="panel"><h3>{escape(title)}</h3><div class="chart" id="chart-{len(drawn)}">'
            figures += "</div></figure>"
            drawn.append(made)
        key = "".join(f'<li><i style="background:{c}"></i>{escape(name)}</li>' for name, c in part.legend.items())
        sections.append(
            f'<section><h2>{place}. {escape(part.title)}</h2><p class="verdict">{escape(part.verdict)}</p>'
            f'<p class="small">{escape(part.about)}</p><ul class="key">{key}</ul>'
            f'<div class="panels">{figures}</div></section>'
        )
    data = {
        "charts": drawn,
        "configurations": {key: charts.configuration(dark=key == "dark") for key in ("light", "dark")},
    }
    text = PAGE.format(
        style=(resources.files("metastep.lab.report") / "page.css").read_text("utf-8") + STYLE,
        about=escape(about),
        parts="\n".join(sections),
        version=ms.__version__,
        vega=charts.javascript(),
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        script=SCRIPT,
    )
    path.write_text(text, encoding="utf-8")


def say(text: str) -> None:
    """Write a line to the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the folder for everything that is written")
    parser.add_argument("--steps", type=int, default=400, help="steps of a run, at least 20")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes that train")
    options = parser.parse_args(arguments)
    if options.steps < 20 or options.seeds < 1 or options.workers < 1:
        parser.error("--steps must be at least 20, --seeds and --workers at least 1")
    started = time.monotonic()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    schedule = out / "learned" / "schedule.safetensors"
    shutil.rmtree(schedule.parent, ignore_errors=True)
    schedule.parent.mkdir()
    torch.set_num_threads(1)
    about = (
        f"Handwritten digits, {options.steps} steps of {BATCH}, {options.seeds} seed(s). Points and lines are means, "
        "bands reach from the lowest to the highest seed. Rates were chosen on validation data; test data was "
        "read once a run, after training. Two methods are told apart only where the ranges of their seeds do not "
        "overlap. An easy task, so that it takes seconds: the findings in the documentation are about larger ones."
    )
    size = (options.steps, options.seeds)
    parts: list[Part] = []
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        each = functools.partial(pool.map, chunksize=1) if options.workers > 1 else map
        for make in (any_rate, mended_rate, functools.partial(carried_schedule, path=schedule)):
            parts.append(make(each, *size))
            say(f"{len(parts)}. {parts[-1].title}\n   {parts[-1].verdict}\n")
    page = out / "index.html"
    write_page(parts, about, page)
    say(f"Done in {time.monotonic() - started:.0f} s. Open {page}; the learned schedule is {schedule}.")


if __name__ == "__main__":
    main()
