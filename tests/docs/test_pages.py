"""Each page of prose says first what it is for, and last where to go on."""

from pathlib import Path

import pytest
from tests.docs.blocks import blocks_in

DOCS = Path(__file__).parents[2] / "docs"
PATTERNS = ("*.md", "guides/*.md", "theory/*.md")
PAGES = {path.relative_to(DOCS).as_posix() for pattern in PATTERNS for path in DOCS.glob(pattern)}


@pytest.mark.parametrize("page", sorted(PAGES - {"index.md"}))
def test_a_page_begins_with_its_purpose_and_ends_with_what_comes_next(page: str) -> None:
    paragraphs = (DOCS / page).read_text(encoding="utf-8").strip().split("\n\n")
    assert paragraphs[0].startswith("# ")
    assert paragraphs[1][0] not in "#`|$<", f"the second paragraph must say what the page is for: {paragraphs[1]}"
    assert paragraphs[-1].startswith("Next: "), f"the last paragraph must be 'Next: [...](...)', got: {paragraphs[-1]}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_code_fits_the_column_of_a_page(page: str) -> None:
    """The column has room for 103 characters in a window of 1280 pixels."""
    lines = [line for block in blocks_in((DOCS / page).read_text("utf-8"), page) for line in block.code.splitlines()]
    assert [line for line in lines if len(line) > 100] == []
