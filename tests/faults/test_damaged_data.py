"""Damaged data files end in one line that names the file, or in a right result: never in a traceback or much memory."""

import gzip
import pickle
import struct
import zlib

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.faults.damage import damages, memory_bound

from metastep.lab.tasks.loaders.arrays import read_idx_pair
from metastep.lab.tasks.loaders.cifar import read_cifar
from metastep.lab.tasks.loaders.folders import read_image_folder
from metastep.lab.tasks.loaders.parquet import read_parquet

MEGABYTES = 1000
PIXELS = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
LABELS = [3, 1, 4, 1]


def png(image):
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def refusal(read, name):
    """The one line that a reader ends in, or None if it gave a result; any other exception fails the test."""
    try:
        return None, read()
    except ValueError as error:
        message = str(error)
        assert name in message
        assert "\n" not in message
        assert len(message) < 1000
        return message, None


def check(result, shape, classes):
    images, labels = result
    assert images.dtype == np.uint8
    assert images.shape[1:] == shape
    assert labels.dtype == np.int64
    assert labels.shape == images.shape[:1]
    assert ((labels >= 0) & (labels < classes)).all()


# CIFAR's pickles


def pickled(protocol):
    flat = PIXELS.transpose(0, 3, 1, 2).reshape(4, 3072)
    return pickle.dumps({b"data": flat, b"labels": LABELS, b"filenames": [b"a.png"] * 4}, protocol=protocol)


OPERATIONS = [
    bytes([code])
    for code in b"(.0123FIJKLMNPQRSTUVXabcd}eghijlopqrstu)]\x80\x81\x85\x86\x87\x88\x8a\x8b\x8e\x8f\x93\x94\x95\x96"
]


def pickle_edit(data, draw):
    """An operation or a number in the beginning, where the structure is, is another one."""
    damaged = bytearray(data)
    place = draw.randrange(min(len(damaged), 400))
    what = draw.choice(
        (draw.choice(OPERATIONS), struct.pack("<I", draw.choice((2**32 - 1, 2**31, 10**9))), b"\xff" * 8)
    )
    if draw.random() < 0.5:
        damaged[place : place + len(what)] = what
    else:
        damaged[place:place] = what
    return bytes(damaged)


def test_a_thousand_damaged_cifar_pickles(tmp_path):
    path = tmp_path / "data_batch_1"
    refused = 0
    with memory_bound(MEGABYTES):
        for protocol in (2, 4):
            for data, what in damages(pickled(protocol), 600, seed=protocol, edit=pickle_edit):
                path.write_bytes(data)
                message, result = refusal(lambda: read_cifar([path], num_classes=10), "data_batch_1")
                refused += message is not None
                assert message or check(result, (32, 32, 3), 10) is None, what
    assert 300 < refused < 1200


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # nine bytes: the memo's entry 2**32 - 1
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2**63 bytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # as many bytes
        b"\x80\x02T\xff\xff\xff\x7f.",
        b"\x80\x02(" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # lists within lists
        b"\x80\x02" + b"N" + b"q\x00h\x00\x86" * 60 + b"}\x8c\x01a.",  # tuples that double 60 times
        b"\x80\x02}" + b"N" + b"q\x00h\x00\x86" * 60 + b"Ns.",  # and one of them as a key
        b"\x80\x02c_codecs\nencode\nq\x01X\x00\x10\x00\x00" + b"a" * 4096 + b"X\x06\0\0\0latin1\x86q\x020"
        + b"h\x01h\x02R" * 50_000 + b".",  # bytes that are made again and again
        b"\x80\x02cnumpy\nndarray\n}q\x00(X\x06\0\0\0valuesK\x01ub.",  # writes into what it names
        b"\x80\x02cnumpy\ndtype\n)R}b.",
    ],
)  # fmt: skip
def test_pickles_that_ask_for_any_memory_or_time_are_refused(tmp_path, content):
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    with memory_bound(100), pytest.raises(ValueError, match=r"test_batch must be a pickled CIFAR batch, got a file"):
        read_cifar([path])


def test_no_pickle_changes_how_the_next_one_is_read(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(pickled(2))
    bad.write_bytes(b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0u1\x85R}X\x04\0\0\0codeX\x02\0\0\0f8sb.")
    with pytest.raises(ValueError, match="bad must be a pickled CIFAR batch"):
        read_cifar([bad])
    np.testing.assert_array_equal(read_cifar([good])[0], PIXELS)


# Images


def png_of(*parts):
    """A PNG of these parts, every checksum right."""
    made = [struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def png_chunks(data, draw):
    """A part of a PNG is another one, its checksum right: a large size, another colour type, less or no pixels."""
    width, height = (draw.choice((0, 1, 32, 33, 60_000, 2**31 - 1, 2**32 - 1)) for _ in range(2))
    header = struct.pack(
        ">IIBBBBB", width, height, draw.choice((8, 8, 1, 16, 3)), draw.choice((2, 2, 0, 3, 6)), 0, 0, 0
    )
    pixels = zlib.compress(bytes(draw.randrange(5000)))
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    if draw.random() < 0.3:
        parts.insert(draw.randrange(4), (draw.choice((b"PLTE", b"tEXt", b"iCCP", b"acTL")), draw.randbytes(30)))
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return data[:8] + b"".join(made)


def test_a_thousand_damaged_pngs_in_a_folder(tmp_path, capfd):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(png(PIXELS[0]))
    path = tmp_path / "cat" / "1.png"
    refused = 0
    with memory_bound(MEGABYTES):
        for data, what in damages(png(PIXELS[1]), 1200, seed=1, edit=png_chunks):
            path.write_bytes(data)
            message, result = refusal(lambda: read_image_folder(tmp_path)[0], "1.png")
            refused += message is not None
            if message is None:
                check(result, (32, 32, 3), 1)
                if not what.startswith("png_chunks"):  # checksums know of every other damage
                    np.testing.assert_array_equal(result[0][1], PIXELS[1], err_msg=what)
    assert refused > 900


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".webp"])
def test_images_of_every_kind_say_their_size_and_hundreds_of_damages_are_survived(tmp_path, kind, capfd):
    (tmp_path / "cat").mkdir()
    good = cv2.imencode(kind, PIXELS[0, :20])[1].tobytes()
    path = tmp_path / "cat" / f"0{kind}"
    path.write_bytes(good)
    assert read_image_folder(tmp_path)[0][0].shape == (1, 20, 32, 3)
    with memory_bound(MEGABYTES):
        for data, _ in damages(good, 300, seed=2):
            path.write_bytes(data)
            message, result = refusal(lambda: read_image_folder(tmp_path)[0], path.name)
            assert message or result[0].shape[3] == 3


@pytest.mark.parametrize("place", ["png", "jpg", "bmp", "gif", "webp"])
def test_images_that_claim_60000_x_60000_pixels_are_refused_before_they_are_decoded(tmp_path, place):
    large = 60_000
    if place == "png":
        header = struct.pack(">IIBBBBB", large, large, 1, 0, 0, 0, 0)
        data = png_of((b"IHDR", header), (b"IDAT", zlib.compress(bytes(20_000_000))), (b"IEND", b""))
    elif place == "jpg":
        good = cv2.imencode(".jpg", PIXELS[0])[1].tobytes()
        data = good.replace(struct.pack(">HH", 32, 32), struct.pack(">HH", large, large), 1)
    elif place == "bmp":
        good = cv2.imencode(".bmp", PIXELS[0])[1].tobytes()
        data = good[:18] + struct.pack("<ii", large, -large) + good[26:]
    elif place == "gif":
        data = b"GIF89a" + struct.pack("<HH", large, large) + bytes(20)
    else:
        data = b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + 2 * (large - 1).to_bytes(3, "little")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(data)
    with memory_bound(100), pytest.raises(ValueError, match=r"0\.png must have .* pixels, it claims 60000 x 60000"):
        read_image_folder(tmp_path)


# Parquet


def table(images):
    return pa.table({"image": images, "label": pa.array(LABELS)})


def parquet_edit(data, draw):
    """The part at the end that describes the columns is damaged, or an image is another file."""
    end = len(data) - draw.randint(8, 700)
    return data[:end] + draw.randbytes(draw.randint(1, 4)) + data[end + draw.randint(0, 4) :]


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_a_thousand_damaged_parquet_files(tmp_path, compression, capfd):
    path = tmp_path / "train.parquet"
    images = pa.array([{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(PIXELS)])
    pq.write_table(table(images), path, compression=compression)
    good, refused = path.read_bytes(), 0
    with memory_bound(MEGABYTES):
        for data, what in damages(good, 700, seed=3, edit=parquet_edit):
            path.write_bytes(data)
            message, result = refusal(lambda: read_parquet([path], channels=3, num_classes=10), "train.parquet")
            refused += message is not None
            assert message or check(result, (32, 32, 3), 10) is None, what
    assert refused > 300


@pytest.mark.parametrize(
    "images",
    [
        ["a.png", "b.png", "c.png", "d.png"],
        [[1, 2, 3]] * 4,
        [[[1, 2], [3, 4]]] * 4,
        [{"path": "a.png"}] * 4,
        [{"bytes": "text", "path": "a.png"}] * 4,
        [1, 2, 3, 4],
    ],
)
def test_columns_of_paths_and_of_pixels_are_refused_in_one_line(tmp_path, images):
    path = tmp_path / "train.parquet"
    pq.write_table(table(pa.array(images)), path)
    message, _ = refusal(lambda: read_parquet([path], channels=3), "train.parquet")
    assert "must hold encoded images" in message
    assert "not paths or lists of pixels" in message


def test_paths_without_bytes_are_refused(tmp_path):
    path = tmp_path / "train.parquet"
    images = pa.array(
        [{"bytes": None, "path": "a.png"}] * 4, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(table(images), path)
    message, _ = refusal(lambda: read_parquet([path], channels=3), "train.parquet")
    assert "image 0 of" in message
    assert "put the content of the image files into it" in message


# IDX


def idx(array):
    return struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape) + array.tobytes()


def idx_edit(data, draw):
    """A size in the header is another one."""
    place = draw.randrange(16)
    return data[:place] + struct.pack(">I", draw.choice((0, 1, 255, 2**31, 2**32 - 1))) + data[place + 4 :]


def test_a_thousand_damaged_idx_files(tmp_path):
    images, labels = tmp_path / "images-idx3-ubyte", tmp_path / "labels-idx1-ubyte"
    good = {images: idx(PIXELS[..., 0]), labels: idx(np.array(LABELS, np.uint8))}
    refused = 0
    with memory_bound(MEGABYTES):
        for number, path in enumerate(good):
            for other, content in good.items():
                other.write_bytes(content)
            for data, what in damages(good[path], 600, seed=4 + number, edit=idx_edit):
                path.write_bytes(data)
                message, result = refusal(lambda: read_idx_pair([images, labels], num_classes=10), "-ubyte")
                refused += message is not None
                assert message or result[0].shape[0] == len(result[1]), what
                assert message or ((result[1] >= 0) & (result[1] < 10)).all(), what
    assert refused > 500


def test_hundreds_of_damaged_compressed_idx_files(tmp_path):
    images, labels = tmp_path / "images-idx3-ubyte.gz", tmp_path / "labels-idx1-ubyte"
    labels.write_bytes(idx(np.array(LABELS, np.uint8)))
    with memory_bound(MEGABYTES):
        for data, what in damages(gzip.compress(idx(PIXELS[..., 0]), mtime=0), 400, seed=6):
            images.write_bytes(data)
            message, result = refusal(lambda: read_idx_pair([images, labels], num_classes=10), "-ubyte")
            if message is None:  # its checksum knows of every damage within
                np.testing.assert_array_equal(result[0][..., 0], PIXELS[..., 0], err_msg=what)


def test_a_short_gzip_file_that_holds_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("metastep.lab.tasks.loaders.arrays._MOST_BYTES", 2**20)
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**26)))
    with (
        memory_bound(50),
        pytest.raises(ValueError, match=r"ubyte\.gz must be a gzip file, .*: it holds more than 1048576"),
    ):
        read_idx_pair([path, path])
