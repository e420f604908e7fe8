"""The table of docs/tasks.md is that of the registry; its examples run with those of all pages, in tests/docs."""

from pathlib import Path

from metastep.lab.tasks.table import BEGIN, END, tasks_as_markdown

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def test_the_page_has_the_table_of_the_registry():
    text = PAGE.read_text("utf-8")
    table = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert table == tasks_as_markdown(), (
        f"put what lab.tasks.table.tasks_as_markdown() returns between {BEGIN} and {END} of {PAGE.name}"
    )
