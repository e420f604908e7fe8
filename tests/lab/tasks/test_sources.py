"""Where data are looked for, and what is said when they are not there."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from metastep.lab.tasks import MissingData, load_task
from metastep.lab.tasks.sources import data_roots, optional_module


def image(seed, shape):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def write_cifar(folder, names, *, key, classes, each=20):
    """Pickled batches in which every class occurs."""
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        batch = {b"data": image(i, (each, 3072)), key: [j % classes for j in range(each)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_idx(path, array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


TRAIN_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.mark.parametrize("place", ["argument", "argument above data", "variable", "variable above data", "current"])
def test_data_are_found_where_they_are_said_to_be(tmp_path, monkeypatch, place):
    monkeypatch.delenv("METASTEP_DATA", raising=False)
    root = tmp_path / "data"
    write_cifar(root / "cifar-10-batches-py", [*TRAIN_BATCHES, "test_batch"], key=b"labels", classes=10)
    named = tmp_path if "above" in place else root
    options = {"inner_valid": 10, "outer_valid": 20}
    if place.startswith("argument"):
        monkeypatch.setenv("METASTEP_DATA", str(tmp_path / "elsewhere"))
        options["data_dir"] = named
    elif place.startswith("variable"):
        monkeypatch.setenv("METASTEP_DATA", str(named))
    else:
        monkeypatch.chdir(tmp_path)
    task = load_task("cifar10/resnet8", **options)
    assert task.splits == {"train": 70, "inner_valid": 10, "outer_valid": 20, "test": 20}
    assert "cifar-10-batches-py" in task.notes


def test_data_are_also_looked_for_in_shared_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("METASTEP_DATA", raising=False)
    assert data_roots()[:2] == [Path("data"), Path("../shared/data")]
    monkeypatch.setenv("METASTEP_DATA", str(tmp_path))
    assert data_roots() == [tmp_path, tmp_path / "data"]
    assert data_roots("x") == [Path("x"), Path("x/data")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10/resnet8", ["cifar-10-batches-py with data_batch_1 and 5 more", "cifar10 with train-*.parquet"]),
        ("cifar100/wrn-28-10", ["cifar-100-python with train and test", "cifar100 with train-*.parquet"]),
        ("mnist/mlp", ["mnist or MNIST/raw with train-images-idx3-ubyte and 3 more", "mnist10k or mnist with"]),
        ("ptb/lstm2", ["ptb or simple-examples/data with ptb.train.txt", "ptb with valid.txt and test.txt"]),
        ("shakespeare/lstm", ["text with tinyshakespeare.txt"]),
    ],
)
def test_missing_data_are_an_error_that_says_which_files_are_expected_where(tmp_path, name, expected):
    with pytest.raises(MissingData) as raised:
        load_task(name, data_dir=tmp_path)
    message = str(raised.value)
    for part in [*expected, str(tmp_path), "METASTEP_DATA"]:
        assert part in message
    assert "\n" not in message
    assert isinstance(raised.value, FileNotFoundError)


def test_what_is_lacking_in_an_incomplete_folder_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, ["data_batch_1", "data_batch_3"], key=b"labels", classes=10)
    lacking = "is there, but lacks data_batch_2, data_batch_4, data_batch_5, test_batch"
    with pytest.raises(MissingData, match=lacking):
        load_task("cifar10/resnet8", data_dir=tmp_path)


def test_a_package_that_is_not_installed_is_named_with_its_remedy():
    with pytest.raises(ImportError, match=r'^no_such_package is needed .*; pip install "metastep\[data\]"$'):
        optional_module("no_such_package")


def test_cifar_100_is_read_by_its_fine_labels(tmp_path):
    names = ["train", "test"]
    write_cifar(tmp_path / "cifar-100-python", names, key=b"fine_labels", classes=100, each=300)
    task = load_task("cifar100/wrn-28-10", data_dir=tmp_path, inner_valid=100, outer_valid=0)
    assert task.num_classes == 100
    assert torch.bincount(task.data.splits_by_name["inner_valid"].labels).tolist() == [1] * 100
    assert next(task.batches("train", batch_size=2)).inputs.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_mnist_is_read_from_idx_files(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    for split, count in (("train", 50), ("t10k", 20)):
        write_idx(tmp_path / folder / f"{split}-images-idx3-ubyte", image(0, (count, 28, 28)))
        write_idx(tmp_path / folder / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    task = load_task("mnist/mlp", data_dir=tmp_path, inner_valid=10, outer_valid=10)
    assert task.splits == {"train": 30, "inner_valid": 10, "outer_valid": 10, "test": 20}


def test_cifar_10_is_read_from_a_folder_of_images_per_class(tmp_path):
    for split in ("train", "test"):
        for c in range(10):
            (tmp_path / "cifar10" / split / f"class{c}").mkdir(parents=True)
            for i in range(2):
                path = tmp_path / "cifar10" / split / f"class{c}" / f"{i}.png"
                path.write_bytes(cv2.imencode(".png", image(i, (32, 32, 3)))[1].tobytes())
    task = load_task("cifar10/resnet8", data_dir=tmp_path, inner_valid=10, outer_valid=0)
    assert task.splits == {"train": 10, "inner_valid": 10, "outer_valid": 0, "test": 20}


def test_images_of_another_shape_and_labels_out_of_range_are_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    for split in ("train", "t10k"):
        write_idx(tmp_path / "mnist" / f"{split}-images-idx3-ubyte", image(0, (4, 20, 20)))
        write_idx(tmp_path / "mnist" / f"{split}-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"must hold images of shape \(28, 28, 1\), got \(20, 20, 1\)"):
        load_task("mnist/mlp", data_dir=tmp_path)
    names = [*TRAIN_BATCHES, "test_batch"]
    write_cifar(tmp_path / "cifar-10-batches-py", names, key=b"labels", classes=12)
    with pytest.raises(ValueError, match=r"data_batch_1 must hold labels in 0\.\.9, got 10 "):
        load_task("cifar10/resnet8", data_dir=tmp_path)


def test_the_standard_treebank_files_come_before_the_remains(tmp_path):
    (tmp_path / "ptb").mkdir()
    for name, text in (
        ("ptb.train.txt", " a b a \n c \n"),
        ("ptb.valid.txt", " a x \n b b b \n"),
        ("ptb.test.txt", " c c \n"),
        ("valid.txt", " wrong \n"),
        ("test.txt", " wrong \n"),
    ):
        (tmp_path / "ptb" / name).write_text(text)
    task = load_task("ptb/lstm2", data_dir=tmp_path, inner_valid=2, outer_valid=3)
    text = {name: tokens.tolist() for name, tokens in task.data.tokens_by_split.items()}
    # <unk> 0, <eos> 1, a 2, b 3, c 4
    assert text == {
        "train": [2, 3, 2, 1, 4, 1],
        "inner_valid": [2, 0],
        "outer_valid": [1, 3, 3],
        "test": [4, 4, 1],
    }
    assert task.num_classes == 5
    with pytest.raises(ValueError, match=r"^inner_valid \+ outer_valid must be <= 7, got 5 \+ 3"):
        load_task("ptb/lstm2", data_dir=tmp_path, inner_valid=5, outer_valid=3)


def test_without_the_training_text_the_test_text_is_divided_and_the_notes_say_so(tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "valid.txt").write_text("a b c d\n")
    (tmp_path / "ptb" / "test.txt").write_text("a b c\nd d d\n")
    task = load_task("ptb/lstm3", data_dir=tmp_path, inner_valid=2, outer_valid=1)
    assert task.splits == {"train": 5, "inner_valid": 2, "outer_valid": 1, "test": 4}
    assert "without its training text" in task.notes
    assert task.data.tokens_by_split["test"].tolist() == [5, 5, 5, 1]


@pytest.mark.parametrize(
    ("name", "needed"),
    [("shakespeare/lstm", 40_102), ("shakespeare/lstm-small", 10_102), ("shakespeare/embedding", 10_102)],
)
def test_a_text_that_is_too_short_is_named_and_told_how_long_it_must_be(tmp_path, name, needed):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("to be or not to be\n" * 5)
    with pytest.raises(ValueError, match=rf"tinyshakespeare\.txt.* must hold at least {needed} tokens, .*longer text"):
        load_task(name, data_dir=tmp_path, inner_valid=60, outer_valid=40)


def test_an_empty_treebank_is_named(tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "valid.txt").write_text("")
    (tmp_path / "ptb" / "test.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match=r"valid\.txt must hold at least 2 words, got 0"):
        load_task("ptb/lstm2", data_dir=tmp_path, inner_valid=0, outer_valid=0)
