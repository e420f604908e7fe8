"""The table of docs/tasks.md is complete; its examples run with those of all pages, in tests/docs."""

from pathlib import Path

import pytest

from metastep.lab.tasks import task_names

TEXT = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text("utf-8")


@pytest.mark.parametrize("name", task_names())
def test_every_task_has_its_row(name):
    assert f"`{name}`" in TEXT
