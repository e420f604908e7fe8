"""The figures in the documents are those that come out of the records in `results/`."""

import json
import tomllib
from pathlib import Path

import pytest
from docs_site.figures import CLAIMS, Checker, report

CLAIM = {"pages": ["README.md"], "says": "on {{ json('tasks.json').near }} of {{ json('tasks.json').all }} tasks"}


def repository(folder: Path, page: str) -> Path:
    """Make a repository with one record and one page."""
    (folder / "results").mkdir()
    (folder / "results" / "tasks.json").write_text(json.dumps({"near": 17, "all": 25}))
    (folder / "README.md").write_text(page)
    return folder


def checked(root: Path, claim: dict[str, object] = CLAIM) -> tuple[str, bool]:
    """Say what is printed of one claim, and whether it came out."""
    return report(Checker(root).check({"claim": [claim]}))


def test_every_figure_that_is_claimed_comes_out_of_the_records() -> None:
    said, right = report(Checker().check(tomllib.loads(CLAIMS.read_text("utf-8"))))
    assert right, f"the record is right: correct the page, or its claim in {CLAIMS.name}\n{said}"


def test_a_page_may_break_its_lines_where_it_likes(tmp_path: Path) -> None:
    said, right = checked(repository(tmp_path, "It is as good on 17\n  of 25 tasks.\n"))
    assert right
    assert said == "README.md: 1 of 1 claims come out of the records"


def test_a_changed_figure_is_noticed_and_told_with_what_it_should_be(tmp_path: Path) -> None:
    said, right = checked(repository(tmp_path, "On many tasks it is worse, but on 18 of 25 tasks it is not.\n"))
    assert not right
    assert said.splitlines()[:3] == [
        "README.md: 0 of 1 claims come out of the records",
        "  should say: on 17 of 25 tasks",
        "  says:       on 18 of 25 tasks",
    ]


def test_of_a_table_only_the_wrong_row_is_told(tmp_path: Path) -> None:
    rows = {
        "pages": ["README.md"],
        "says": "{% for n, v in json('tasks.json').items() %}| {{ n }} | {{ v }} |\n{% endfor %}",
    }
    said, right = checked(repository(tmp_path, "| near | 17 |\n| all | 26 |\n"), rows)
    assert not right
    assert "  should say: | all | 25 |\n  says:       | all | 26 |" in said
    assert "near" not in said


@pytest.mark.parametrize(
    "says", ["on 17 of 25 tasks", "on {{ 17 }} of 25 tasks", "on {{ [17, 25] | min }} of 25 tasks"]
)
def test_a_claim_without_a_figure_from_a_record_is_refused(tmp_path: Path, says: str) -> None:
    root = repository(tmp_path, "on 17 of 25 tasks\n")
    with pytest.raises(ValueError, match=r"no figure in it comes from a record; compute it"):
        Checker(root).text(says, "{% set unused = json('tasks.json') %}")
    assert not checked(root, CLAIM | {"says": says})[1]


@pytest.mark.parametrize("page", ["on 117 of 25", "on 3.17 of 25", "on 17 of 250", "on 17 of 25.5"])
def test_a_part_of_another_number_is_not_the_figure(tmp_path: Path, page: str) -> None:
    root = repository(tmp_path, f"{page}\n")
    assert not checked(root, CLAIM | {"says": "{{ json('tasks.json').near }} of {{ json('tasks.json').all }}"})[1]


def test_a_table_of_nothing_is_not_taken_for_found(tmp_path: Path) -> None:
    root = repository(tmp_path, "| near | 18 |\n")
    rows = "{% for n, v in json('tasks.json').items() if v > 99 %}| {{ n }} | {{ v }} |\n{% endfor %}"
    said, right = checked(root, CLAIM | {"says": rows})
    assert not right
    assert "the records leave nothing of it" in said


def test_a_missing_record_is_named_with_what_to_do(tmp_path: Path) -> None:
    root = repository(tmp_path, "on 17 of 25 tasks\n")
    (root / "results" / "tasks.json").unlink()
    said, right = checked(root)
    assert not right
    assert "there is no record results/tasks.json; restore it, or take the claim out." in said


def test_what_a_record_does_not_hold_is_told_and_not_left_empty(tmp_path: Path) -> None:
    root = repository(tmp_path, "on of 25 tasks\n")
    said, right = checked(root, CLAIM | {"says": "on {{ json('tasks.json').far }} of 25 tasks"})
    assert not right
    assert "has no attribute 'far'" in said
