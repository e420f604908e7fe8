"""Readers of the standard formats, on small files written here."""

import gzip
import pickle
import struct

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastep.lab.tasks.loaders.arrays import read_idx, read_idx_pair
from metastep.lab.tasks.loaders.cifar import read_cifar
from metastep.lab.tasks.loaders.folders import read_image_folder
from metastep.lab.tasks.loaders.parquet import read_parquet
from metastep.lab.tasks.loaders.text import encode, read_text, read_words, vocabulary


@pytest.fixture
def pixels():
    """(5, 32, 32, 3): red, green, blue."""
    return np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)


def png(image):
    """Encode an (H, W, C) image without loss."""
    return cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))[1].tobytes()


def idx(array):
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    return header + array.tobytes()


# CIFAR's pickles


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("labels", ["labels", "fine_labels"])
@pytest.mark.parametrize("key", [str.encode, str])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar_batches_of_every_protocol_are_read(tmp_path, pixels, protocol, labels, key, order):
    flat = pixels.transpose(0, 3, 1, 2).reshape(5, 3072)  # red rows, green rows, blue rows
    for name, part in (("one", slice(0, 2)), ("two", slice(2, 5))):
        batch = {
            key("data"): np.asarray(flat[part], order=order),
            key(labels): [1, 3, 5, 7, 9][part],
            key("coarse_labels"): [0, 0, 0, 0, 0][part],
            key("filenames"): [b"a.png"],
            key("batch_label"): b"training batch \xff",
        }
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    images, classes = read_cifar([tmp_path / "one", tmp_path / "two"])
    np.testing.assert_array_equal(images, pixels)
    assert classes.tolist() == [1, 3, 5, 7, 9]


def test_a_batch_pickled_by_python_2_is_read(tmp_path):
    # Protocol 2 with Python 2 strings, as in the published files: two black images and one white.
    raw = b"\0" * 6144 + b"\xff" * 3072
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01K\x03M\0\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    file = tmp_path / "data_batch_1"
    file.write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x04K\x05K\x06eu.")
    images, labels = read_cifar([file])
    assert images.shape == (3, 32, 32, 3)
    assert images.reshape(3, -1).max(1).tolist() == [0, 0, 255]
    assert labels.tolist() == [4, 5, 6]


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_before_it_runs(tmp_path):
    trace = tmp_path / "trace"
    file = tmp_path / "data_batch_1"
    for call in (Malicious(open, trace, "w"), Malicious(eval, f"open({str(trace)!r}, 'w')")):
        file.write_bytes(pickle.dumps({b"data": call, b"labels": [0]}))
        with pytest.raises(ValueError, match=r"data_batch_1 must be a pickled CIFAR batch, .* it asks for "):
            read_cifar([file])
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a pickled CIFAR batch"),
        (b"not a pickle", "must be a pickled CIFAR batch"),
        (pickle.dumps([1]), "must be a pickled CIFAR batch, .* it holds a list, and no dictionary"),
        (pickle.dumps({b"labels": [1]}), "must hold an array 'data' and a list of labels, got"),
        (pickle.dumps({b"data": np.zeros((1, 3072), object), b"labels": [1]}), "must be a pickled CIFAR batch"),
        (pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}), "it holds an array of type f8"),
        (pickle.dumps({b"data": np.zeros((1, 99), np.uint8), b"labels": [1]}), r"must hold \(1, 3072\) pixels"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), r"must hold \(1, 3072\) pixels"),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["cat"]}),
            r"must hold labels in 0\.\.99, got b?'cat'",
        ),
        (b"\x80\x02c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0zipt R.", "must be a pickled CIFAR batch"),
    ],
)
def test_other_files_are_no_cifar_batches(tmp_path, content, message):
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_1 {message}|{message}"):
        read_cifar([file])


@given(cut=st.integers(0, 400), flip=st.integers(0, 255), at=st.integers(0, 400))
def test_a_damaged_cifar_batch_is_an_error_that_names_it_or_is_still_one(tmp_path_factory, cut, flip, at):
    content = bytearray(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, protocol=2))
    content[at % len(content)] ^= flip
    file = tmp_path_factory.mktemp("damaged") / "test_batch"
    file.write_bytes(content[: len(content) - cut] if cut else content)
    refusal = None
    try:
        images, labels = read_cifar([file])
    except ValueError as error:
        refusal = str(error)
    assert "test_batch" in refusal if refusal else (images.shape, labels.shape) == ((1, 32, 32, 3), (1,))


# IDX


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_compressed(tmp_path, shape, suffix):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / f"array-idx{len(shape)}-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


def test_an_idx_pair_gives_grey_images_and_their_labels(tmp_path):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], np.uint8)
    files = [tmp_path / "images", tmp_path / "labels"]
    files[0].write_bytes(idx(images))
    files[1].write_bytes(idx(labels))
    read, classes = read_idx_pair(files)
    np.testing.assert_array_equal(read, images[..., None])
    assert classes.dtype == np.int64
    assert classes.tolist() == [7, 1]
    with pytest.raises(ValueError, match=r"must be \(N, H, W\) and \(N,\), got \(2,\) and \(2, 3, 4\)"):
        read_idx_pair(files[::-1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x", b"", "must be an IDX file of unsigned bytes, got one that begins b''"),
        ("x", b"\0\0\x0d\x01\0\0\0\0", "must be an IDX file of unsigned bytes"),
        ("x", b"\0\0\x08\x03\0\0", "must hold 3 sizes in its header, got only 6 bytes"),
        ("x", idx(np.zeros(4, np.uint8))[:-1], r"must hold \(4,\) bytes after its header, got 3"),
        ("x", idx(np.zeros(4, np.uint8)) + b"\0", r"must hold \(4,\) bytes after its header, got 5"),
        ("x.gz", b"no gzip", "must be a gzip file, got a broken one"),
        ("x.gz", gzip.compress(idx(np.zeros(400, np.uint8)), mtime=0)[:-9], "must be a gzip file, got a broken one"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_idx(tmp_path / name)


# Encoded images


@pytest.mark.parametrize("names", [("img", "label"), ("image", "fine_label")])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_shards_are_read_in_order(tmp_path, pixels, names, plain, channels):
    pixels = pixels[..., :channels]
    files = [tmp_path / f"train-0000{i}-of-00002.parquet" for i in range(2)]
    for path, part in zip(files, (slice(0, 2), slice(2, 5)), strict=True):
        encoded = [png(image) for image in pixels[part]]
        column = pa.array(encoded if plain else [{"bytes": data, "path": None} for data in encoded])
        labels = pa.array(range(part.start, part.stop))
        pq.write_table(pa.table({names[0]: column, names[1]: labels}), path, row_group_size=2)
    images, labels = read_parquet(files, channels=channels)
    np.testing.assert_array_equal(images, pixels)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"must hold 2 shards like train-00000-of-00002.parquet, got 1"):
        read_parquet(files[:1], channels=channels)


def test_parquet_files_without_images_labels_or_pixels_are_refused(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"img": [b"no image"], "other": [1]}), file)
    with pytest.raises(ValueError, match="must have a column img or image, and one of label, fine_label"):
        read_parquet([file], channels=3)
    for content in (b"no image", b"", None):
        column = pa.array([content], pa.binary())
        pq.write_table(pa.table({"img": column, "label": [1]}), file)
        with pytest.raises(ValueError, match=r"^image 0 of .* must be JPEG, PNG or the like"):
            read_parquet([file], channels=3)


def test_broken_parquet_files_and_labels_that_are_no_numbers_are_refused(tmp_path):
    file = tmp_path / "x.parquet"
    file.write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"x\.parquet must be a parquet file, got a broken one"):
        read_parquet([file], channels=3)
    for label in ("cat", 1.5, None):
        pq.write_table(
            pa.table({"img": [b""], "label": pa.array([label], pa.int64() if label is None else None)}), file
        )
        with pytest.raises(ValueError, match=r"x\.parquet must have an integer label for every image"):
            read_parquet([file], channels=3)


def test_a_folder_of_images_per_class_is_read(tmp_path, pixels):
    for i, name in enumerate(("dog", "cat", "dog", "bird", "cat")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{i}.png").write_bytes(png(pixels[i]))
    (images, labels), classes = read_image_folder(tmp_path)
    assert classes == ["bird", "cat", "dog"]
    assert labels.tolist() == [0, 1, 1, 2, 2]
    np.testing.assert_array_equal(images, pixels[[3, 1, 4, 0, 2]])
    (grey, _), _ = read_image_folder(tmp_path, channels=1)
    assert grey.shape == (5, 32, 32, 1)


def test_hidden_files_are_ignored_and_what_is_left_out_is_counted_and_said_once(tmp_path, pixels):
    for name in ("cat/0.png", "dog/1.png", ".ipynb_checkpoints/0-checkpoint.png", "cat/._0.png", "cat/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image" if "._" in name else png(pixels[0]))
    assert read_image_folder(tmp_path)[1] == ["cat", "dog"]
    for name in ("dog/2.gif", "dog/3.tif", "dog/4.TIF", "dog/deeper/5.png", "dog/readme", "6.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels[0]))
    said = r"6 files are left out \(1 x \.gif, 2 x \.png, 2 x \.tif, 1 x no suffix\), such as 6\.png; read are CLASS/\*"
    with pytest.warns(UserWarning, match=said) as warned:
        (_, labels), classes = read_image_folder(tmp_path)
    assert len(warned) == 1
    assert labels.tolist() == [0, 1]
    assert classes == ["cat", "dog"]


def test_a_test_folder_is_numbered_by_the_classes_of_the_training_images(tmp_path, pixels):
    for name in ("train/cat", "train/dog", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(png(pixels[0]))
    _, names = read_image_folder(tmp_path / "train")
    (_, labels), _ = read_image_folder(tmp_path / "test", names=names)
    assert labels.tolist() == [1]
    (tmp_path / "test" / "bird").mkdir()
    (tmp_path / "test" / "bird" / "0.png").write_bytes(png(pixels[0]))
    with pytest.raises(ValueError, match=r"test/bird must be of a class that has training images, got none of 'bird'"):
        read_image_folder(tmp_path / "test", names=names)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_labels_that_are_no_class_are_refused_with_the_name_of_the_file(tmp_path, pixels, label):
    expected = rf"must hold labels in 0\.\.9, got {label}"
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [png(pixels[0])] * 2, "label": [3, label]}), path)
    with pytest.raises(ValueError, match=rf"train\.parquet {expected}"):
        read_parquet([path], channels=3, num_classes=10)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, label]}, protocol=2))
    with pytest.raises(ValueError, match=rf"data_batch_1 {expected}"):
        read_cifar([path], num_classes=10)
    if 0 <= label < 256:
        images, labels = tmp_path / "images", tmp_path / "labels"
        images.write_bytes(idx(np.zeros((2, 3, 3), np.uint8)))
        labels.write_bytes(idx(np.array([3, label], np.uint8)))
        with pytest.raises(ValueError, match=rf"labels {expected}"):
            read_idx_pair([images, labels], num_classes=10)


def test_an_empty_folder_and_images_of_several_sizes_are_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match=r"^folder must hold CLASS/\*"):
        read_image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png(pixels[0]))
    (tmp_path / "a" / "1.png").write_bytes(png(pixels[0, :5]))
    with pytest.raises(ValueError, match=r"1\.png must have the size of .*0\.png, \(32, 32\), got \(5, 32\); resize"):
        read_image_folder(tmp_path)


# Text


def test_words_get_an_end_of_line_and_unknown_ones_a_number(tmp_path):
    (tmp_path / "train.txt").write_text(" the cat \n the <unk> sat \n")
    words = read_words(tmp_path / "train.txt")
    assert words == ["the", "cat", "<eos>", "the", "<unk>", "sat", "<eos>"]
    numbers = vocabulary(words, always=("<unk>", "<eos>"))
    assert numbers == {"<unk>": 0, "<eos>": 1, "cat": 2, "sat": 3, "the": 4}
    assert torch.equal(encode(["the", "dog", "<eos>"], numbers), torch.tensor([4, 0, 1]))


def test_characters_are_numbered_in_order(tmp_path):
    (tmp_path / "text.txt").write_text("ba\nc", "utf-8")
    characters = list(read_text(tmp_path / "text.txt"))
    numbers = vocabulary(characters)
    assert encode(characters, numbers).tolist() == [2, 1, 0, 3]
    with pytest.raises(ValueError, match=r"^tokens must be in the vocabulary, got 'x'"):
        encode(["a", "x"], numbers)


def test_a_byte_order_mark_is_no_character_and_line_ends_are_newlines(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "text.txt") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9".encode("latin-1"), r"got byte 0xe9 at 3; convert it, such as by iconv -f WINDOWS-1252"),
        ("text".encode("utf-16"), r"got UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_another_encoding_is_refused_with_the_file_and_the_remedy(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"text\.txt must be utf-8 text, {message}"):
        read_text(tmp_path / "text.txt")
