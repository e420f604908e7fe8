"""Every command, as it is typed."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.main import get_command

import metastep as package
from metastep.cli import display, listing
from metastep.cli.app import app
from metastep.cli.compare import usual_schedules
from metastep.lab.bench.protocols import training
from metastep.lab.bench.run import Progress
from metastep.lab.bench.runner import ExperimentProgress
from metastep.lab.bench.schedules import SCHEDULES
from metastep.lab.records import read_records
from metastep.lab.tasks.table import recipe_of
from metastep.schedules import load_schedule, save_schedule

SMALL = ("--steps", "20", "--set", "train_size=200", "--set", "threads=1")
COMMANDS = ("train", "meta-train", "compare", "experiment", "report", "inspect", "new", "list")


@pytest.mark.parametrize("command", [(), *[(name,) for name in COMMANDS]], ids=str)
def test_every_command_has_help(metastep, command: tuple[str, ...]) -> None:
    result = metastep(*command, "--help")
    assert result.code == 0
    assert "Usage: metastep" in result.out
    assert result.err == ""


def test_without_a_command_there_is_help(metastep) -> None:
    result = metastep()
    assert result.code == 0
    assert all(name in result.out for name in COMMANDS)


def test_the_version_is_that_of_the_package(metastep) -> None:
    assert metastep("--version") == (0, f"{package.__version__}\n", "")


@pytest.mark.parametrize("command", ["train", "meta-train", "compare"])
def test_the_options_of_a_run_are_the_same_everywhere(metastep, command: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = metastep(command, "--help").out
    for option in ("steps", "epochs", "batch-size", "optimizer", "data", "device", "set", "out", "resume", "json"):
        assert f"--{option} " in text


def test_no_command_has_more_options_than_can_be_read() -> None:
    for name, command in get_command(app).commands.items():
        options = [parameter.name for parameter in command.params if parameter.param_type_name == "option"]
        assert len(options) <= 16, f"{name}: {options}"


def test_the_command_line_is_read_without_torch() -> None:
    """The package's own __init__ is left out: what counts is that no command's file imports torch before it runs."""
    source = Path(package.__file__).parent
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('metastep'); package.__path__ = [{str(source)!r}]\n"
        "sys.modules['metastep'] = package\n"
        "sys.argv = ['metastep', '--help']\n"
        "from metastep.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'matplotlib', 'altair', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_list_names_what_can_be_named(metastep) -> None:
    tables = metastep("list", "--json").json
    assert set(tables) == {"tasks", "schedules", "optimizers", "methods", "experiments", "settings"}
    assert set(tables["schedules"]) == {*SCHEDULES, *package.shipped_schedules()}
    text = metastep("list", "--all").out
    assert all(name in text for table in tables.values() for name in table)


def test_a_list_fits_a_screen(metastep) -> None:
    tables = metastep("list", "--json").json
    for kind in ((), *((name,) for name in tables)):
        lines = metastep("list", *kind).out.splitlines()
        assert len(lines) <= 26
        assert all(len(line) <= 80 for line in lines)
        assert "--all" in lines[-1]
    tasks = metastep("list", "tasks").out
    assert all(name.partition("/")[2] in tasks for name in tables["tasks"])
    every = metastep("list", "tasks", "--all").out
    assert all(f"  {name} " in every for name in tables["tasks"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_summary_that_looks_like_markup_is_listed_as_it_is(whole: bool) -> None:
    screen = Console(width=80, file=io.StringIO())
    screen.print(listing._rows([("own[x]", "needs metastep[bench]")], whole=whole))
    assert "own[x]  needs metastep[bench]" in screen.file.getvalue()


def test_the_bar_keeps_loss_and_rate_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    monkeypatch.setattr(display, "_console", screen)
    progress = Progress(
        step=123456, total_steps=123456, loss=1234.5678, lr=1.23e-05, valid={"perplexity": 123456.7}, meta_loss=1.5
    )
    with display.run_bar(quiet=False) as watch:
        watch(progress)
    shown = screen.file.getvalue()
    assert "loss 1234.5678  rate 1.23e-05" in shown
    with display.experiment_bar(quiet=False) as watch:
        watch(
            ExperimentProgress(
                label="a/very-long-task " * 5, runs_done=10, runs=20, steps_done=3, steps=9, run=progress
            )
        )
    assert screen.file.getvalue().count("loss 1234.5678  rate 1.23e-05") > shown.count("loss")


def test_the_summary_of_a_run_names_schedule_optimizer_and_rates(metastep) -> None:
    out = metastep("train", "digits/mlp", *SMALL, "--optimizer", "sgd", "--schedule", "linear", "--lr", "0.5").out
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["schedule"].strip() == "linear"
    assert facts["optimizer"].strip() == "sgd (momentum 0.9, weight_decay 0.0005)"
    assert facts["rate"].startswith("0.5 first, 0.5 highest, 0.0")


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [(0.9, "constant,multistep,cosine,calibrated"), (0.0, "constant,multistep,cosine,calibrated,mlrsnet-cifar10")],
)
def test_ours_are_among_the_schedules_that_are_compared(momentum: float, expected: str) -> None:
    base = training(recipe_of("digits/mlp"), schedule="constant", momentum=momentum)
    assert usual_schedules(base) == expected
    assert "calibrated" not in usual_schedules(training(recipe_of("digits/mlp"), schedule="constant", optimizer="sps"))


def test_a_run_from_the_command_line(metastep, tmp_path: Path) -> None:
    result = metastep(
        "train", "digits/mlp", *SMALL, "--schedule", "wsd", "--lr", "0.03", "--set", "warmup=3", "--out", "r"
    )
    assert result.code == 0
    assert "test accuracy" in result.out
    assert "folder: r\n" in result.out
    record = metastep("train", "--resume", "r", "--json").json
    assert (record["status"], record["schedule"], record["lr"], record["folder"]) == ("finished", "wsd", 0.03, "r")
    assert record["settings"]["warmup_steps"] == 3
    assert list(tmp_path.glob("r/events.out.tfevents.*"))


@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "calibrated"), ("sgd", "calibrated"), ("dfw", "cosine")])
def test_without_a_schedule_the_optimizer_decides(metastep, optimizer: str, schedule: str) -> None:
    record = metastep("train", "digits/mlp", *SMALL, "--optimizer", optimizer, "--json").json
    assert record["schedule"] == schedule


def test_json_is_one_object_on_standard_output_and_no_bar(metastep) -> None:
    result = metastep("train", "digits/mlp", *SMALL, "--json")
    assert result.code == 0
    assert result.err == ""
    assert result.json["folder"].startswith("runs/")


def test_a_schedule_is_learned_inspected_and_carried(metastep, tmp_path: Path) -> None:
    result = metastep("meta-train", "digits/convnet", *SMALL, "--hidden-size", "6", "--every", "4", "--out", "learned")
    assert result.code == 0
    file = "learned/schedule.safetensors"
    assert f"learned schedule: {file}  (look at it: metastep inspect {file})" in result.out
    assert len(load_schedule(tmp_path / file).schedules) == 3

    result = metastep("inspect", file, "--steps", "30")
    assert result.code == 0
    assert "falling" in result.out
    assert result.out.endswith("plot: schedule-rates.png\n")
    assert (tmp_path / "schedule-rates.png").read_bytes().startswith(b"\x89PNG")
    facts = metastep("inspect", file, "--steps", "30", "--json").json
    assert {name: len(rates) for name, rates in facts["rates"].items()} == {"falling": 30, "rising": 30, "flat": 30}
    assert facts["class"] == "Phased"

    entrants = f"cosine,learned={file},control={file}@staircase"
    options = ("--schedules", entrants, "--seeds", "2", "--lrs", "0.05,0.1", "--out", "cmp")
    result = metastep("compare", "digits/mlp", *SMALL, *options)
    assert result.code == 0
    assert result.out.endswith("report: cmp/report.html\n")
    assert all(len(line) <= 80 for line in result.out.splitlines() if "±" in line or "─" in line)
    records = [one.as_dict() for _, one in read_records(tmp_path / "cmp" / "records.jsonl")]
    assert [(r["label"], r["seed"]) for r in records] == [
        (label, seed) for label in ("cosine", "learned", "control") for seed in (0, 1)
    ]
    page = (tmp_path / "cmp" / "report.html").read_text()
    note = "Schedules that read a base rate got the best of 0.05, 0.1, by the outer validation loss at the end"
    assert note in page

    (tmp_path / "cmp" / "report.html").unlink()
    rows = metastep("report", "cmp", "--json").json["rows"]
    assert {row["label"] for row in rows} == {"cosine", "learned", "control"}
    assert note in (tmp_path / "cmp" / "report.html").read_text()
    assert metastep("compare", "--resume", "cmp", "--json").json["rows"] == rows


def test_a_diverged_run_is_told_and_gets_its_page(metastep, tmp_path: Path) -> None:
    options = ("--schedules", "constant", "--lrs", "1e7", "--seeds", "1", "--momentum", "0", "--out", "cmp")
    result = metastep("compare", "digits/mlp", *SMALL, *options)
    assert result.code == 0
    assert "1 diverged" in result.out
    assert (tmp_path / "cmp" / "report.html").exists()
    result = metastep("train", "digits/mlp", *SMALL, "--lr", "1e7", "--schedule", "constant", "--momentum", "0")
    assert result.code == 0
    assert "diverged" in result.out


def test_label_noise_is_an_option(metastep) -> None:
    noise = ("--set", "noise=uniform", "--set", "noise_rate=0.4")
    record = metastep("train", "digits/mlp", *SMALL, *noise, "--json").json
    assert (record["settings"]["noise"], record["settings"]["noise_rate"]) == ("uniform", 0.4)


def test_a_finished_run_of_tasks_is_shown_again(metastep) -> None:
    sizes = ("--steps", "10", "--every", "5", "--batch-size", "8", "--set", "train_size=60", "--set", "threads=1")
    tasks = ("wine/mlp", "wine/mlp", "--set", "inner_valid=20", "--set", "outer_valid=20", *sizes)
    first = metastep("meta-train", *tasks, "--out", "out", "--json")
    assert first.code == 0, first.err
    again = metastep("meta-train", "--resume", "out", "--json")
    assert again.code == 0, again.err
    assert again.json == first.json


def test_a_schedule_file_may_have_any_sign_in_its_path(metastep, tmp_path: Path) -> None:
    """As in lr+warmup/me@firm,a=b.safetensors, with a label and without."""
    file = tmp_path / "lr+warmup" / "me@firm,a=b.safetensors"
    file.parent.mkdir()
    torch.manual_seed(0)
    save_schedule(package.MLRSNet(hidden_size=4), file)
    name = "lr+warmup/me@firm,a=b.safetensors"
    options = ("--momentum", "0", "--json")
    trained = metastep("train", "digits/mlp", *SMALL, *options, "--schedule", name, "--out", "one")
    assert trained.code == 0, trained.err
    assert trained.json["schedule"] == name
    compared = metastep(
        "compare", "digits/mlp", *SMALL, *options, "--schedules", f"{name},mine={name}", "--seeds", "1", "--out", "two"
    )
    assert compared.code == 0, compared.err
    assert compared.json["runs"] == 2
    assert {path.name for path in (tmp_path / "two" / "runs").iterdir()} == {"me@firm,a=b", "mine"}
