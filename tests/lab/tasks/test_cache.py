"""Decoded images on disk."""

import os

import numpy as np
import pytest

from metastep.compiled import cache_directory
from metastep.lab.tasks.loaders.encoded import decoded_once


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("METASTEP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "source.parquet"
    path.write_bytes(b"encoded")
    return path


class Decoder:
    """Gives images and labels, and counts how often it was asked."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4) + np.uint8(self.calls), np.array([4, 5])


def expect(result, times):
    images, labels = result
    np.testing.assert_array_equal(images, np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4) + times)
    assert labels.tolist() == [4, 5]


def test_files_are_decoded_once(source):
    decode = Decoder()
    for _ in range(3):
        expect(decoded_once([source], decode, variant=""), 1)
    assert decode.calls == 1


@pytest.mark.parametrize("change", ["size", "time", "variant", "name"])
def test_other_files_are_decoded_anew(source, change):
    decode = Decoder()
    decoded_once([source], decode, variant="")
    if change == "size":
        stat = source.stat()
        source.write_bytes(b"longer than before")
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(source, ns=(1, 1))
    elif change == "name":
        source = source.rename(source.with_name("other.parquet"))
    expect(decoded_once([source], decode, variant="grey" if change == "variant" else ""), 2)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "one missing", "pickle"])
def test_a_broken_cache_is_ignored_and_made_anew(source, damage):
    decode = Decoder()
    decoded_once([source], decode, variant="")
    for file in sorted(cache_directory().glob("*.npy"))[:1]:
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-5])
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "garbage":
            file.write_bytes(b"garbage")
        elif damage == "pickle":
            np.save(file, np.array([{}], object), allow_pickle=True)
        else:
            file.unlink()
    expect(decoded_once([source], decode, variant=""), 2)
    expect(decoded_once([source], decode, variant=""), 2)
    assert decode.calls == 2


def test_a_cache_that_cannot_be_written_is_done_without(source, monkeypatch):
    blocked = source.with_name("a file, no folder")
    blocked.write_bytes(b"")
    monkeypatch.setenv("METASTEP_CACHE", str(blocked / "cache"))
    decode = Decoder()
    expect(decoded_once([source], decode, variant=""), 1)
    expect(decoded_once([source], decode, variant=""), 2)


def test_writing_to_the_images_does_not_change_the_cache(source):
    decode = Decoder()
    decoded_once([source], decode, variant="")
    images, _ = decoded_once([source], decode, variant="")
    images[:] = 0
    expect(decoded_once([source], decode, variant=""), 1)


def test_the_cache_lies_in_the_home_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("METASTEP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "metastep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_directory() == tmp_path / "cache" / "metastep"
    monkeypatch.setenv("METASTEP_CACHE", "~/own")
    assert cache_directory() == tmp_path / "own"
