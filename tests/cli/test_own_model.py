"""``metastep new``, and training a model and data of one's own."""

import json
import sys
from pathlib import Path

import pytest
import torch

CODE = ("--model", "model_of_mine:make_model", "--data", "data_of_mine:make_data")
FAST = ("--set", "threads=1", "--schedule", "cosine")


@pytest.fixture
def project(metastep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``metastep new`` writes, under names that no other module of this process has."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert metastep("new", "mine").code == 0
    for name in ("model", "data"):
        Path("mine", f"{name}.py").rename(f"{name}_of_mine.py")
        monkeypatch.delitem(sys.modules, f"{name}_of_mine", raising=False)
    from metastep.lab.tasks.own_model import own_recipe

    own_recipe.cache_clear()
    return tmp_path


def test_a_new_project_says_what_to_type_and_is_not_written_over(metastep) -> None:
    result = metastep("new", "mine")
    assert result.out.splitlines()[-1] == "  metastep train --model model:make_model --data data:make_data"
    assert result.out.splitlines()[-1].strip() in Path("mine", "README.md").read_text()
    again = metastep("new", "mine")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "FOLDER must be a new one, got mine" in again.err


def test_the_new_project_learns_with_no_rate_given(metastep, project: Path) -> None:
    result = metastep("train", *CODE, "--steps", "400", "--set", "threads=1", "--json")
    assert result.code == 0, result.err
    record = result.json
    assert record["final"]["accuracy"] > 0.9
    assert (record["task"], record["schedule"]) == ("model_of_mine:make_model", "calibrated")
    assert record["settings"]["data_dir"] == "data_of_mine:make_data"
    assert record["settings"]["code"].keys() == {"model_of_mine:make_model", "data_of_mine:make_data"}
    assert all(":" not in path.name for path in project.rglob("*"))


def test_code_that_only_a_folder_names_is_not_run(metastep, project: Path) -> None:
    assert metastep("train", *CODE, *FAST, "--steps", "6", "--set", "checkpoint_every=3", "--out", "run").code == 0
    shown = metastep("train", "--resume", "run", "--json")  # it is finished: nothing is run
    assert shown.code == 0
    (project / "run" / "record.json").unlink()
    for folder, named in (("run", ()), ("run", CODE[:2]), ("run", ("--model", "os:getcwd", *CODE[2:]))):
        result = metastep("train", "--resume", folder, *named)
        assert result.code == 2
        assert "it is run only if you name it" in result.err
        assert f"metastep train --resume run {' '.join(CODE)}" in result.err
    again = metastep("train", "--resume", "run", *CODE, "--json")
    assert again.code == 0, again.err
    assert again.json["final"] == shown.json["final"]


@pytest.mark.parametrize("command", ["compare", "meta-train"])
def test_other_commands_take_own_code_and_ask_for_it_again(metastep, project: Path, command: str) -> None:
    named = CODE if command == "compare" else (CODE[1], *CODE[2:])
    small = ("--steps", "4", "--set", "threads=1", "--out", "out")
    more = ("--seeds", "1", "--schedules", "constant,cosine") if command == "compare" else ("--hidden-size", "4")
    first = metastep(command, *named, *small, *more, "--json")
    assert first.code == 0, first.err
    (project / "out" / ("records.jsonl" if command == "compare" else "record.json")).unlink()
    refused = metastep(command, "--resume", "out")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"Type: metastep {command} --resume out {' '.join(named)}" in refused.err
    if command == "meta-train":
        again = metastep(command, "--resume", "out", *named, "--json")
        assert again.json["final"] == first.json["final"]


def test_a_run_of_own_code_is_resumed_bit_for_bit_and_changed_code_is_noted(metastep, project: Path) -> None:
    from metastep.cli.train import o

    whole = metastep("train", *CODE, *FAST, "--steps", "40", "--out", "whole", "--json").json
    from metastep.lab.bench.config import read_config
    from metastep.lab.bench.run import Run

    asked = iter(range(1000))
    Run(read_config(project / "whole"), project / "part", should_stop=lambda: next(asked) >= 21).execute()
    assert o.resume_command("train", Path("part"), [read_config(project / "part")]).endswith(" ".join(CODE))
    resumed = metastep("train", "--resume", "part", *CODE, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["final"] == whole["final"]
    assert resumed.json["train"]["loss"] == whole["train"]["loss"]

    (project / "part" / "record.json").unlink()
    with Path("model_of_mine.py").open("a") as file:
        file.write("# changed\n")
    changed = metastep("train", "--resume", "part", *CODE, "--json")
    assert changed.code == 0
    assert "has changed since the run began" in changed.err


def test_an_error_in_own_code_is_one_line_and_all_of_it_is_shown_on_demand(
    metastep, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("model_of_mine.py").write_text("def make_model():\n    return 1 / 0\n")
    result = metastep("train", *CODE)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "model_of_mine.py, line 2: ZeroDivisionError" in result.err
    monkeypatch.setenv("METASTEP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        metastep("train", *CODE)


def test_the_settings_of_the_run_are_kept_as_they_were_named(metastep, project: Path) -> None:
    metastep("train", *CODE, *FAST, "--steps", "3", "--out", "run")
    kept = json.loads((project / "run" / "run.json").read_text())
    assert (kept["task"], kept["data_dir"]) == (CODE[1], CODE[3])
    assert torch.load(project / "run" / "checkpoint.pt", weights_only=True)
