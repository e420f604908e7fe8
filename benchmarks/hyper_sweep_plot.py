"""Draw the sensitivity plot of the optimizers' documentation from records of hyper_sweep.py.

python benchmarks/hyper_sweep_plot.py results/hyper-sweep-sgd.json results/hyper-sweep-adamw.json --out docs/hyper-sensitivity.svg
"""  # noqa: E501

import argparse
import json
import math
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

START = {0.1: "10 times too small", 1.0: "tuned", 10.0: "10 times too large"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [run for file in arguments.files for run in json.loads(file.read_text())["records"]]
    cases = sorted({(run["task"], run["optimizer"]) for run in runs})
    kappas = sorted({run["kappa"] for run in runs if run["kappa"] is not None})

    def median(case: tuple[str, str], factor: float, kappa: float | None) -> float:
        chosen = [r for r in runs if (r["task"], r["optimizer"]) == case and r["factor"] == factor]
        losses = [r["valid_loss"] for r in chosen if r["kappa"] == kappa]
        return statistics.median(math.inf if loss is None else loss for loss in losses)

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, (factor, title) in zip(axes, START.items(), strict=True):
        for case in cases:
            reference = median(case, 1.0, None)
            values = [median(case, factor, kappa) / reference for kappa in (None, *kappas)]
            axis.plot(range(len(values)), values, marker="o", label=" ".join(case))
        axis.set_xticks(range(len(kappas) + 1), ["base", *(f"{kappa:g}" for kappa in kappas)])
        axis.set_title(f"start: {title}")
        axis.set_xlabel("hyper_lr")
        axis.set_yscale("log")
        axis.axhspan(0, 1.1, color="0.9", zorder=0)
    axes[0].set_ylabel("held-out loss / tuned base")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
