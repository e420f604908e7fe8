"""A user's own images and text, by the names of tasks."""

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from metastep.lab.tasks import LabelNoise, MissingData, load_task


def encoded(seed, shape=(12, 10, 3), kind=".png"):
    return cv2.imencode(kind, np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))[1].tobytes()


def write_images(folder, counts, **options):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(encoded(i, **options))


def test_a_folder_per_class_is_a_task(tmp_path):
    write_images(tmp_path, {"cat": 20, "dog": 20})
    task = load_task("own-images/convnet", data_dir=tmp_path)
    assert task.splits == {"train": 28, "inner_valid": 3, "outer_valid": 3, "test": 6}
    assert task.num_classes == 2
    batch = next(task.batches("train", batch_size=28))
    assert batch.inputs.shape == (28, 3, 12, 10)
    assert batch.inputs.mean((0, 2, 3)).abs().max() < 1e-4
    assert batch.inputs.std((0, 2, 3)).sub(1).abs().max() < 1e-2
    noisy = load_task("own-images/convnet", data_dir=tmp_path, label_noise=LabelNoise("flip", 1.0))
    assert torch.equal(*(t.data.splits_by_name["test"].labels for t in (task, noisy)))


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_have_one_numbering_of_classes(tmp_path, test):
    write_images(tmp_path / "train", {"cat": 10, "dog": 10})
    write_images(tmp_path / test, {"dog": 3})
    task = load_task("own-images/resnet8", data_dir=tmp_path)
    assert task.data.splits_by_name["test"].labels.tolist() == [1, 1, 1]
    assert sum(task.splits.values()) == 23
    write_images(tmp_path / test, {"bird": 1})
    with pytest.raises(ValueError, match="/bird must be of a class that has training images"):
        load_task("own-images/resnet8", data_dir=tmp_path)


def test_images_of_several_sizes_and_large_ones_are_scaled(tmp_path):
    write_images(tmp_path / "mixed", {"a": 10, "b": 10})
    (tmp_path / "mixed" / "a" / "0.png").write_bytes(encoded(0, shape=(7, 9, 3)))
    write_images(tmp_path / "large", {"a": 10, "b": 10}, shape=(80, 90, 3))
    for folder in ("mixed", "large"):
        task = load_task("own-images/convnet", data_dir=tmp_path / folder)
        assert next(task.batches("train", batch_size=2)).inputs.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("place", ["file", "folder", "train and test"])
def test_parquet_files_are_a_task(tmp_path, place):
    table = pa.table({"image": [encoded(i) for i in range(20)], "label": [i % 2 for i in range(20)]})
    names = (
        ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"] if place == "train and test" else ["x.parquet"]
    )
    for name in names:
        pq.write_table(table, tmp_path / name)
    task = load_task("own-images/convnet", data_dir=tmp_path / "x.parquet" if place == "file" else tmp_path)
    assert task.splits["test"] == (20 if place == "train and test" else 3)
    assert task.num_classes == 2


def test_what_is_no_data_is_refused_in_words(tmp_path):
    with pytest.raises(MissingData, match=r"^data_dir must name your data for this task: .*--data PATH"):
        load_task("own-images/convnet")
    with pytest.raises(MissingData, match=r"^data_dir must be a text file, got .*absent, which is not there"):
        load_task("own-text/lstm", data_dir=tmp_path / "absent")
    with pytest.raises(MissingData, match=r"^data_dir must hold CLASS/\*"):
        load_task("own-images/convnet", data_dir=tmp_path)
    with pytest.raises(MissingData, match=r"or a folder with one \.txt, got 0 in"):
        load_task("own-text/lstm", data_dir=tmp_path)
    write_images(tmp_path, {"cat": 5})
    with pytest.raises(ValueError, match=r"must hold images of at least 2 classes, got 1: cat"):
        load_task("own-images/convnet", data_dir=tmp_path)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match=r"short\.txt must hold at least 2560 characters, got 9; take a longer text"):
        load_task("own-text/lstm", data_dir=tmp_path / "short.txt")


def test_a_text_file_is_a_task(tmp_path):
    text = "ein Wort, \u00e4hnlich wie viele.\n" * 300
    (tmp_path / "text.txt").write_text(text, "utf-8-sig")
    for place in (tmp_path, tmp_path / "text.txt"):
        task = load_task("own-text/transformer", data_dir=place)
        assert task.num_classes == len(set(text))
        assert sum(task.splits.values()) == len(text)
        assert task.splits["test"] == len(text) // 10
