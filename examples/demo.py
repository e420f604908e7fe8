"""The main job in a few minutes on two cores: learn a schedule on one network, use it for others, compare, look.

Every step is a command that can be typed; the demo only types them. Everything goes to the folder ``demo/``.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("demo")
LEARNED = OUT / "learned" / "schedule.safetensors"
# one base optimizer for all: the schedule was learned for SGD without momentum
BASE = "--optimizer sgd --momentum 0 --set weight_decay=5e-4 --set threads=1"
# the closed forms get the best of three base rates; the learned schedule and its control are not tuned
BASELINES = (
    f"--schedules constant,multistep,cosine,staircase,learned={LEARNED},control={LEARNED}@staircase "
    "--lrs 0.1,0.3,1 --seeds 3 --workers 2"
)
COMMANDS = {
    "1. Learn a schedule on a small convnet": f"meta-train digits/convnet --set threads=1 --out {OUT}/learned",
    "2. What was learned": f"inspect {LEARNED} --plot {OUT}/learned/rates.png",
    "3. Use it for another network": f"compare digits/mlp {BASE} {BASELINES} --out {OUT}/other-network",
    "4. Use it for a run twice as long": f"compare digits/convnet {BASE} {BASELINES} --steps 1600 "
    f"--out {OUT}/twice-as-long",
}


def main() -> None:
    """Run the commands in order; stop at the first that fails."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    for heading, command in COMMANDS.items():
        sys.stdout.write(f"\n{heading}\n$ metastep {command}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "metastep", *shlex.split(command)], check=True)
    sys.stdout.write(
        f"\nDone in {time.monotonic() - started:.0f} s. Open the pages: {OUT}/other-network/report.html and "
        f"{OUT}/twice-as-long/report.html\n"
        "'control' is the learned schedule with each of its three parts replaced by a constant, its final output for "
        "one loss. What 'learned' gains over it, it gains by reading the loss.\n"
    )


if __name__ == "__main__":
    main()
