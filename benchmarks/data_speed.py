"""How fast CIFAR-10 is decoded, and how many augmented images a second one core makes.

    python benchmarks/data_speed.py [--data DIR] [--json FILE]

The rate is compared, in the same run, with a loop that crops, mirrors and normalises the same images one by one.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import pad

from measuring import write_record
from metastep.lab.tasks import load_task
from metastep.lab.tasks.datasets.image_sets import CIFAR10
from metastep.lab.tasks.sources import find_files

BATCH = 128
REPEATS = 3


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode_and_reload(data_dir) -> dict[str, float]:
    results = {}
    found = find_files(CIFAR10.title, CIFAR10.formats, data_dir)
    files = [*found.train, *found.test]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"source: {len(files)} files in {found.train[0].parent.name}, {size:.0f} MB")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["METASTEP_CACHE"] = cache
        for what in ("first load, decoding 60,000 images and writing the cache", "second load, from the cache"):
            results[what] = seconds(lambda: load_task("cifar10/resnet8", data_dir=data_dir))
            print(f"{what}: {results[what]:.2f} s")
        # The arrays are mapped: keep them while the folder is there.
        results.update(augmentation(load_task("cifar10/resnet8", data_dir=data_dir)))
    return results


def augmentation(task) -> dict[str, float]:
    torch.set_num_threads(1)
    stream = task.batches("train", batch_size=BATCH)
    steps = task.steps_per_epoch(BATCH)

    def epoch():
        for _ in range(steps):
            next(stream)

    images = task.splits["train"]
    batched = max(images / seconds(epoch) for _ in range(REPEATS))
    one_by_one = max(looped_rate(task) for _ in range(REPEATS))
    print(f"augmented on one core, in batches of {BATCH}: {batched:,.0f} images/s")
    print(f"augmented on one core, image by image:    {one_by_one:,.0f} images/s")
    print(f"ratio: {batched / one_by_one:.1f}")
    return {"images/s in batches": batched, "images/s one by one": one_by_one, "ratio": batched / one_by_one}


def looped_rate(task, count=4096) -> float:
    """Images a second when each is padded, cropped, mirrored and normalised on its own, then stacked."""
    split = task.data.splits_by_name["train"]
    mean, std = (torch.tensor(values) for values in (task.data.mean, task.data.std))
    generator = torch.Generator().manual_seed(0)

    def one(row):
        y, x = torch.randint(9, (2,), generator=generator).tolist()
        image = pad(split.store.images[row], (0, 0, 4, 4, 4, 4))[y : y + 32, x : x + 32]
        if torch.rand((), generator=generator) < 0.5:
            image = image.flip(1)
        return (image.float() - mean) / std

    def loop():
        for start in range(0, count, BATCH):
            torch.stack([one(row) for row in split.rows[start : start + BATCH].tolist()]).permute(0, 3, 1, 2)

    return count / seconds(loop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data; default: looked for")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="images are augmented on the CPU")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    write_record(options.json, "cpu", decode_and_reload(options.data))


if __name__ == "__main__":
    main()
