"""The page on the methods says what the table says."""

from pathlib import Path

from metastep.lab.bench.methods import BEGIN, END, methods_as_markdown

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


def test_the_page_holds_the_table_as_it_is() -> None:
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == methods_as_markdown().strip(), (
        f"put what lab.bench.methods.methods_as_markdown() returns between {BEGIN} and {END} of {PAGE.name}"
    )
