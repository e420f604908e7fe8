"""SVHN, TinyImageNet and ImageNet, from small files written here in their published layouts."""

from random import Random

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from metastep.lab.tasks import LabelNoise, load_task
from metastep.lab.tasks.loaders.arrays import read_svhn
from metastep.lab.tasks.loaders.encoded import decode_crop, random_window
from metastep.lab.tasks.loaders.folders import read_tiny_imagenet

GENERATOR = np.random.default_rng(0)


def noise(*shape):
    return GENERATOR.integers(256, size=shape, dtype=np.uint8)


def write_svhn(folder, counts=(60, 20)):
    folder.mkdir()
    written = {}
    for name, count in zip(("train", "test"), counts, strict=True):
        pixels, digits = noise(32, 32, 3, count), (np.arange(count) % 10 + 1).astype(np.uint8)
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": pixels, "y": digits[:, None]})
        written[name] = pixels, digits
    return written


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


# SVHN


def test_svhn_is_read_with_10_as_the_digit_0(tmp_path):
    pixels, digits = write_svhn(tmp_path / "svhn")["train"]
    images, labels = read_svhn([tmp_path / "svhn" / "train_32x32.mat"])
    np.testing.assert_array_equal(images, pixels.transpose(3, 0, 1, 2))
    assert labels.tolist() == [0 if digit == 10 else digit for digit in digits]


def test_an_svhn_task_is_not_mirrored(tmp_path):
    write_svhn(tmp_path / "svhn")
    task = load_task("svhn/lenet5", data_dir=tmp_path, inner_valid=10, outer_valid=10)
    assert task.splits == {"train": 40, "inner_valid": 10, "outer_valid": 10, "test": 20}
    assert not task.data.augments
    task.loss(task.make_model(), next(task.batches("train"))).backward()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": noise(32, 32, 3, 2)}, r"must hold X and y, got \['X'\]"),
        ({"X": noise(32, 32, 3, 2), "y": np.ones((3, 1))}, r"must hold \(32, 32, 3, 3\) uint8 pixels"),
        ({"X": noise(32, 32, 3, 2), "y": np.array([[1], [11]])}, r"must hold labels in 1\.\.10, got 1\.\.11"),
        (None, r"must be a MATLAB file, got one that is refused"),
    ],
)
def test_what_is_no_svhn_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "train_32x32.mat"
    if content is None:
        path.write_bytes(b"not a MATLAB file" * 20)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(ValueError, match=f"train_32x32.mat {message}"):
        read_svhn([path])


# TinyImageNet


@pytest.fixture
def tiny(tmp_path):
    """Three classes listed out of order; one image is grey."""
    root = tmp_path / "tiny-imagenet-200"
    names = ["n03", "n01", "n02"]
    for name in names:
        for i in range(4):
            image = noise(64, 64) if (name, i) == ("n01", 0) else noise(64, 64, 3)
            write_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", image)
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    for i in range(3):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", noise(64, 64, 3))
    rows = [f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n" for i, name in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return root


def test_tiny_imagenet_has_the_same_classes_in_training_and_validation(tiny):
    images, labels = read_tiny_imagenet(sorted(tiny.glob("train/*/images/*.JPEG")))
    assert images.shape == (12, 64, 64, 3)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    grey = images[0].astype(int)
    assert (grey[..., 0] == grey[..., 1]).all()
    _, labels = read_tiny_imagenet([tiny / "val" / "val_annotations.txt", *sorted(tiny.glob("val/images/*.JPEG"))])
    assert labels.tolist() == [2, 0, 1]


def test_a_task_tests_on_tiny_imagenet_s_validation_images(tiny):
    task = load_task("tinyimagenet/resnet18", data_dir=tiny.parent, inner_valid=3, outer_valid=3)
    assert task.splits == {"train": 6, "inner_valid": 3, "outer_valid": 3, "test": 3}
    assert next(task.batches("train", batch_size=2)).inputs.shape == (2, 3, 64, 64)
    assert task.num_classes == 200


def test_a_tiny_imagenet_that_is_not_whole_is_refused(tiny):
    annotations = tiny / "val" / "val_annotations.txt"
    validation = [annotations, *sorted(tiny.glob("val/images/*.JPEG"))]
    annotations.write_text("val_0.JPEG\tn01\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt must have a line for every image, got none for val_1"):
        read_tiny_imagenet(validation)
    (tiny / "wnids.txt").write_text("n01\nn02\n")
    with pytest.raises(ValueError, match=r"wnids\.txt must list every class, got none called n03"):
        read_tiny_imagenet(sorted(tiny.glob("train/*/images/*.JPEG")))
    (tiny / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"wnids\.txt must be there and list the classes"):
        read_tiny_imagenet(sorted(tiny.glob("train/*/images/*.JPEG")))


# ImageNet


@pytest.fixture
def imagenet(tmp_path):
    """Two classes of photographs of several sizes."""
    for split, count in (("train", 8), ("val", 2)):
        for name in ("n01", "n02"):
            for i in range(count):
                write_image(tmp_path / "imagenet" / split / name / f"{i}.JPEG", noise(40 + 8 * i, 90 - 5 * i, 3))
    return tmp_path


def load(folder, **options):
    return load_task("imagenet/resnet50", data_dir=folder, inner_valid=2, outer_valid=2, **options)


def test_photographs_are_decoded_as_they_are_read(imagenet):
    task = load(imagenet)
    assert task.splits == {"train": 12, "inner_valid": 2, "outer_valid": 2, "test": 4}
    assert task.num_classes == 2
    assert task.data.splits_by_name["inner_valid"].labels.sort().values.tolist() == [0, 1]
    batch = next(task.batches("train", batch_size=5))
    assert batch.inputs.shape == (5, 3, 224, 224)
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


def test_a_stream_of_photographs_continues_bit_for_bit_and_augments_anew(imagenet):
    stream = load(imagenet).batches("train", batch_size=5, seed=1)
    next(stream)
    saved = stream.state_dict()
    expected = [next(stream) for _ in range(4)]  # into the second epoch
    resumed = load(imagenet).batches("train", batch_size=5, seed=9)
    resumed.load_state_dict(saved)
    for batch in expected:
        again = next(resumed)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.targets, batch.targets)


def test_an_evaluation_of_photographs_sees_the_same_middle_every_time(imagenet):
    data = load(imagenet).data
    settings = {"batch_size": 4, "device": torch.device("cpu"), "augment": False, "shuffle": False}
    one, other = (next(data.stream("test", seed=seed, **settings)) for seed in (0, 1))
    assert torch.equal(one.inputs, other.inputs)
    assert one.targets.tolist() == [0, 0, 1, 1]


def test_noise_and_missing_classes_of_imagenet(imagenet):
    clean, noisy = load(imagenet), load(imagenet, label_noise=LabelNoise("flip", 1.0))
    labels = [task.data.splits_by_name["train"].labels for task in (clean, noisy)]
    assert torch.equal(labels[1], 1 - labels[0])
    write_image(imagenet / "imagenet" / "val" / "n99" / "0.JPEG", noise(30, 30, 3))
    with pytest.raises(
        ValueError,
        match=r"val/n99 must be of a class that has training images, .*; the classes are n01, n02",
    ):
        load(imagenet)


def test_the_middle_of_a_photograph_is_seven_eighths_of_its_short_side():
    image = np.zeros((256, 512, 3), np.uint8)
    image[16:240, 144:368] = 255  # 224 x 224 in the middle
    encoded = cv2.imencode(".png", image)[1].tobytes()
    assert (decode_crop(encoded, size=224, seed=None, name="x") == 255).all()


def test_a_photograph_that_cannot_be_decoded_is_named():
    for encoded in (b"", b"no image"):
        with pytest.raises(
            ValueError, match=rf"^photo 7 must be JPEG, PNG or the like, got {len(encoded)} other bytes"
        ):
            decode_crop(encoded, size=8, seed=None, name="photo 7")


@pytest.mark.parametrize(("height", "width"), [(300, 400), (5, 900), (900, 5), (1, 1)])
def test_random_windows_lie_inside_and_have_the_published_areas_and_ratios(height, width):
    for seed in range(300):
        top, left, rows, columns = random_window(height, width, Random(seed))
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width
        assert min(rows, columns) >= 1
        if (height, width) == (300, 400):
            assert 0.078 <= rows * columns / (height * width) <= 1
            assert 0.73 <= columns / rows <= 1.37
