"""Draw the sensitivity plot of the optimizers' documentation from records of hyper_sweep.py.

python benchmarks/hyper_sweep_plot.py results/hyper-sweep-sgd.json results/hyper-sweep-adamw.json --out docs/hyper-sensitivity.svg
"""  # noqa: E501

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
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, (factor, title) in zip(axes, START.items(), strict=True):
        for case, here in sorted(cases.items()):
            values = [here[factor, kappa] for kappa in (None, *kappas)]
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
