"""Published figures stand beside ours where their logs are found, and only there."""

from pathlib import Path

import pytest

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
