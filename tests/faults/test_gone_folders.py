"""A run folder, or a file that it needs, is deleted or renamed while the run is at work: an error, never a result."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS, begun
from tests.lab.bench.running import Child, differences, learning_config, outcome, run_config

from metastep.lab.bench.run import Progress, Run
from metastep.lab.runtime.folder import FolderGone

CONFIGS = {
    "sgd": run_config(),
    "adam": run_config(optimizer="adam", optimizer_options={}, lr=1e-3, checkpoint_every=None),
    "learning": learning_config(),
}
WAYS: dict[str, Callable[[Path], object]] = {
    "deleted": shutil.rmtree,
    "renamed": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "replaced": lambda folder: (folder.rename(folder.with_name("elsewhere")), folder.mkdir()),
    "emptied": lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()],
    "without its settings": lambda folder: (folder / "run.json").unlink(),
    "without its curves": lambda folder: (folder / "metrics.jsonl").unlink(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_whose_folder_is_gone_ends_in_an_error(name: str, way: str, tmp_path: Path) -> None:
    folder, gone = tmp_path / "run", []

    def watch(progress: Progress) -> None:
        if progress.step >= 17 and not gone:
            gone.append(progress.step)
            WAYS[way](folder)

    with pytest.raises(FolderGone, match="run was deleted or renamed while work was going on"):
        Run(CONFIGS[name], folder, on_progress=watch, tensorboard=False).execute()
    assert not (folder / "record.json").exists()
    if way in ("deleted", "renamed"):
        assert not folder.exists()  # nor is it made anew
    if way in ("renamed", "replaced") and CONFIGS[name].checkpoint_every is not None:
        notes: list[str] = []
        Run(CONFIGS[name], tmp_path / "elsewhere", on_note=notes.append, tensorboard=False).execute()
        assert notes == []
        Run(CONFIGS[name], tmp_path / "whole", tensorboard=False).execute()
        assert differences(outcome(tmp_path / "elsewhere"), outcome(tmp_path / "whole")) == []


@pytest.mark.parametrize("way", ["deleted", "renamed"])
def test_the_command_says_so_in_a_line(way: str, start: Callable[..., Child], tmp_path: Path) -> None:
    child = start(*COMMANDS["train"], "--out", "out")
    begun(child)
    child.signal(signal.SIGSTOP)
    WAYS[way](tmp_path / "out")
    child.signal(signal.SIGCONT)
    assert child.end() == 2
    line = child.err.strip().splitlines()[-1]
    assert line.startswith("error: out was deleted or renamed while work was going on in it; ")
    assert "Traceback" not in child.err
    assert not (tmp_path / "out").exists()
