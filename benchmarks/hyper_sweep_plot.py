"""Draw the sensitivity plot of the optimizers' documentation from records of hyper_sweep.py.

python benchmarks/hyper_sweep_plot.py results/hyper-sweep-*.json --out docs/hyper-sensitivity.svg
"""

import argparse
import json
import math
import statistics
from pathlib import Path

START = {0.1: "10 times too small", 1.0: "tuned", 10.0: "10 times too large"}


def over_tuned_base(files: list[Path]) -> dict[tuple[str, str], dict[tuple[float, float | None], float]]:
    """Losses over the tuned base's, medians over seeds, by task and base, then by start and hyper-rate (None: base)."""
    runs = [run for file in files for run in json.loads(file.read_text())["records"]]
    losses: dict[tuple[str, str], dict[tuple[float, float | None], list[float]]] = {}
    for run in runs:
        loss = math.inf if run["valid_loss"] is None else run["valid_loss"]
        case = losses.setdefault((run["task"], run["optimizer"]), {})
        case.setdefault((run["factor"], run["kappa"]), []).append(loss)
    medians = {case: {key: statistics.median(those) for key, those in here.items()} for case, here in losses.items()}
    return {case: {key: loss / here[1.0, None] for key, loss in here.items()} for case, here in medians.items()}


def main() -> None:
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cases = over_tuned_base(arguments.files)
    kappas = sorted({kappa for here in cases.values() for _, kappa in here if kappa is not None})
    tasks = sorted({task for task, _ in cases})
    styles = dict(zip(sorted({optimizer for _, optimizer in cases}), ("-", "--"), strict=False))
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.9), sharey=True, layout="constrained")
    for axis, (factor, title) in zip(axes, START.items(), strict=True):
        for (task, optimizer), here in sorted(cases.items()):
            values = [here[factor, kappa] for kappa in (None, *kappas)]
            color, label = f"C{tasks.index(task)}", f"{task}, {optimizer}"
            axis.plot(range(len(values)), values, styles[optimizer], marker="o", ms=4, color=color, label=label)
        axis.set_xticks(range(len(kappas) + 1), ["base", *(f"{kappa:g}" for kappa in kappas)])
        axis.set_title(f"start: {title}")
        axis.set_xlabel("hyper_lr")
        axis.set_yscale("log")
        axis.axhspan(0, 1.1, color="0.9", zorder=0)
    axes[0].set_ylabel("held-out loss / tuned base")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
