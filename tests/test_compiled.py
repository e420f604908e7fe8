"""C++ sources: built once, kept, and done without where there is no compiler; none of ours gives a warning."""

import subprocess
from pathlib import Path

import pytest

from metastep import compiled
from metastep.optim.cpu import engine
from metastep.schedules import compiled_query

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METASTEP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return ANSWER; }')
    return path


def kept(source: Path) -> list[str]:
    return [path.suffix for path in (source.parent / "cache").glob("*")]


@needs_compiler
def test_a_library_is_built_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiled.library(source, "-DANSWER=42")
    assert found is not None
    assert found.answer() == 42
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled, "build", lambda *given: pytest.fail("it was there"))
    again = compiled.library(source, "-DANSWER=42")
    assert again is not None
    assert again.answer() == 42
    assert kept(source) == [".so"]


@needs_compiler
def test_a_damaged_library_is_built_again(source: Path) -> None:
    assert compiled.library(source, "-DANSWER=42") is not None
    (kept_file,) = (source.parent / "cache").glob("*.so")
    kept_file.unlink()  # not written over: it is open
    kept_file.write_bytes(b"no library")
    compiled.library.cache_clear()
    again = compiled.library(source, "-DANSWER=42")
    assert again is not None
    assert again.answer() == 42


def test_without_a_home_there_is_no_library(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("METASTEP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert compiled.library(source, "-DANSWER=42") is None


@needs_compiler
def test_other_flags_are_another_library(source: Path) -> None:
    one, two = (compiled.library(source, f"-DANSWER={number}") for number in (1, 2))
    assert one is not None
    assert two is not None
    assert (one.answer(), two.answer()) == (1, 2)


@needs_compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind(source: Path) -> None:
    assert compiled.library(source) is None  # ANSWER is not defined
    assert kept(source) == []


def test_without_a_compiler_there_is_no_library(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.library(source, "-DANSWER=42") is None
    assert not (source.parent / "cache").exists()


@needs_compiler
@pytest.mark.parametrize("module", [engine, compiled_query])
def test_our_sources_give_no_warning(module) -> None:
    command = [compiled.compiler(), *compiled.FLAGS, *module.FLAGS, "-Wall", "-Wextra", "-fsyntax-only", module.SOURCE]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
