"""``metastep report`` writes what is asked for, where it is asked for, or says in one line why not."""

from pathlib import Path

import pytest
from tests.cli.test_bad_input import refused
from tests.lab.report import comparison_records
from tests.lab.report.experiment_records import make_records, write_lines

from metastep.cli.report import paper_figures

LOG = "epoch,train_loss,train_acc,test_loss,test_acc\n199,0.1,99,0.3,92.54\n200,0.1,99,0.3,92.36\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "reference" / "mlrsnet" / "resnet18_cifar10.csv"
    path.parent.mkdir(parents=True)
    path.write_text(LOG)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("METASTEP_DATA", str(tmp_path / "data"))
    return path


def test_the_last_epoch_of_a_log_that_is_found_is_given_with_its_source(log: Path) -> None:
    (figure,) = paper_figures({"cifar10/resnet18", "cifar100/wrn-28-10", "digits/mlp"})
    assert (figure.task, figure.method, figure.metric, figure.value) == (
        *("cifar10/resnet18", "sgd/mlr-snet"),
        *("accuracy", "92.36 %"),
    )
    assert "arXiv 2007.14546" in figure.citation
    assert "200 epochs" in figure.citation
    assert paper_figures({"digits/mlp"}) == []


def test_without_logs_there_are_none_and_a_log_that_is_none_is_named(log: Path) -> None:
    log.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"resnet18_cifar10\.csv must be a log"):
        paper_figures({"cifar10/resnet18"})
    log.unlink()
    assert paper_figures({"cifar10/resnet18"}) == []


@pytest.mark.parametrize(("options", "name"), [((), "report.html"), (("--format", "md"), "report.md")])
def test_what_is_written_stands_beside_the_records(metastep, tmp_path: Path, options: tuple, name: str) -> None:
    write_lines(make_records(3, 2, 1, (1,)), tmp_path / "records.jsonl")
    result = metastep("report", ".", *options)
    assert (result.code, result.out) == (0, f"6 runs, of which 1 diverged or failed\nreport: {name}\n")
    assert (tmp_path / name).stat().st_size > 500


def test_it_is_written_where_it_is_told(metastep, tmp_path: Path) -> None:
    write_lines(make_records(3, 2, 1, (1,)), tmp_path / "records.jsonl")
    assert metastep("report", "records.jsonl", "-o", "rows.csv", "--format", "csv").code == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 7
    assert metastep("report", "records.jsonl", "-o", "pictures", "--format", "svg").code == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} >= {"validation_loss.svg", "profiles.svg"}


def test_on_one_task_the_table_is_printed_with_what_was_lost(metastep, tmp_path: Path) -> None:
    write_lines(comparison_records.make_records()[:6], tmp_path / "records.jsonl")
    (tmp_path / "notes.txt").write_text("Rates were not tuned.\n")
    result = metastep("report", ".")
    assert result.code == 0
    assert "1 diverged" in result.out
    assert result.out.endswith("Rates were not tuned.\nreport: report.html\n")
    assert {path.suffix for path in tmp_path.iterdir()} >= {".html", ".png"}


@pytest.mark.parametrize("text", ["5", "{}", "null", '{"schema": 1}', '{"schema": 99}', "[" * 100_000, "\x00"])
def test_what_is_no_record_ends_in_one_line(metastep, tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text + "\n")
    refused(metastep("report", "record.json"), "record.json:1")


def test_a_folder_that_is_missing_or_empty_ends_in_one_line(metastep, tmp_path: Path) -> None:
    refused(metastep("report", "nowhere"), "there is no nowhere; give the folder")
    (tmp_path / "empty").mkdir()
    refused(metastep("report", "empty"), "no records in empty")
