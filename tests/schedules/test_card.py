"""A card says what the records say, and nothing that they do not."""

import doctest

import pytest
import yaml

import metastep as ms
from metastep.schedules import model_card as card_module
from metastep.schedules.model_card import ScheduleCard, Transfer


def runs(*losses: float | None, accuracy: float = 0.9) -> list[dict]:
    return [{"final": {"loss": loss, "accuracy": accuracy}, "train": {"lr": [0.3, 0.2, 0.01]}} for loss in losses]


ROWS = {"ours": runs(0.20, 0.22), "cosine": runs(0.10, 0.15), "constant": runs(0.23, 0.30), "wsd": runs(0.21, 0.25)}


@pytest.mark.parametrize("module", [card_module])
def test_the_examples_run(module) -> None:
    results = doctest.testmod(module, extraglobs={"ScheduleCard": ScheduleCard, "Cosine": ms.Cosine})
    assert results.attempted > 0
    assert results.failed == 0


def test_the_verdict_names_who_is_better_and_who_is_beaten_in_every_run() -> None:
    verdict = Transfer(title="t", records=ROWS, ours="ours").verdict()
    assert verdict == (
        "Place 2 of 4 by mean test loss. It loses to cosine. Its worst run is better than the best of constant."
    )


def test_the_winner_loses_to_nobody() -> None:
    assert Transfer(title="t", records=ROWS, ours="cosine").verdict().startswith("Place 1 of 4 by mean test loss. Its")


def test_whoever_diverges_comes_last_and_the_table_says_so() -> None:
    transfer = Transfer(title="t", records={**ROWS, "fast": runs(0.01, None), "faster": runs(None)}, ours="ours")
    assert transfer.ranking()[-2:] == ["fast", "faster"]
    table = transfer.markdown()[1].splitlines()
    assert table[-2].startswith("| fast | 0.010 (0.010 ... 0.010), 1 diverged | 0.9 | 0.3 to 0.01 | 2 |")
    assert table[-1].startswith("| faster | -, 1 diverged |")
    assert "**ours**" in table[3]


def test_a_schedule_that_diverged_itself_beats_nobody() -> None:
    verdict = Transfer(title="t", records={"ours": runs(None), "cosine": runs(0.1)}, ours="ours").verdict()
    assert verdict == "Place 2 of 2 by mean test loss. It loses to cosine."


@pytest.mark.parametrize(
    ("rows", "says"),
    [({"other": runs(0.1)}, "ours must be one of other, got 'ours'"), ({"ours": []}, "at least one run in each row")],
)
def test_a_table_without_the_schedules_own_runs_is_refused(rows: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Transfer(title="t", records=rows, ours="ours")


def test_a_card_has_the_configuration_the_training_and_the_transfer() -> None:
    record = {"task": "digits/mlp", "seed": 3, "command": "metastep meta-train digits/mlp", "final": {"loss": None}}
    transfer = Transfer(title="To text", records=ROWS, ours="ours", source="`a.jsonl`", note="Untuned.")
    text = ScheduleCard(
        name="mine", summary="It is mine.", training=[record], changed="nothing.", transfer=[transfer], limits=["Slow."]
    ).markdown(ms.Phased([ms.MLRSNet(hidden_size=4), ms.MLRSNet(hidden_size=4)]))
    assert text.startswith("---\nlibrary_name: metastep\nlicense: mit\ntags:\n- metastep\n")
    for part in (
        "# mine\n\nIt is mine.\n",
        "| phases | 2, each a MLRSNet |",
        "| `hidden_size` | 4 |",
        "| seed | 3 |",
        "| command | `metastep meta-train digits/mlp` |",
        "| result on test data | loss - |",
        "After the training: nothing.",
        "### To text",
        "Untuned.\n\nRecords: `a.jsonl`.",
        "## Limits\n\n* Slow.",
    ):
        assert part in text


def test_a_card_of_which_nothing_is_known_says_so() -> None:
    text = ScheduleCard(name="mine", summary="A cosine.").markdown(ms.Cosine(9))
    assert "Training: no record was given." in text
    assert "Transfer: not measured." in text
    assert "None was stated" in text


HOSTILE = [
    "a: b",
    "- c",
    "# d",
    "'e'",
    '"f"',
    "{g: h}",
    "&i",
    "*j",
    "!!python/object:os.system",
    "null",
    "yes",
    "1e3",
    "é",
]


def test_no_tag_breaks_or_extends_the_head() -> None:
    text = ScheduleCard(name="x", summary="y", license="apache-2.0", tags=HOSTILE).markdown(ms.Cosine(3))
    _, head, _ = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "metastep",
        "license": "apache-2.0",
        "tags": ["metastep", "learning-rate-schedule", *HOSTILE],
    }


@pytest.mark.parametrize("license", ["", "mit\nextra: 1", "MIT License", "a: b", "---", 3, None])
def test_a_licence_that_is_no_name_is_refused(license: object) -> None:
    with pytest.raises(ValueError, match="license must be a licence's name as the hub knows it"):
        ScheduleCard(name="x", summary="y", license=license)  # type: ignore[arg-type]


@pytest.mark.parametrize("tags", ["word", ["a\nb: c"], [""], ["\x00"], [3], ["a\n---\n"]])
def test_tags_that_are_no_words_are_refused(tags: object) -> None:
    with pytest.raises(ValueError, match="tags must be a list of words"):
        ScheduleCard(name="x", summary="y", tags=tags)  # type: ignore[arg-type]
