"""Keeps short code in one piece: an extension of Python-Markdown.

A browser breaks a line after any hyphen, also inside ``--batch-size``, and inside ``-o``. Style sheets cannot tell
short code from long, so the short ones are marked here, and ``assets/site.css`` keeps them whole.
"""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING

from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor

if TYPE_CHECKING:
    from markdown import Markdown

LONGEST = 32  # characters; more would not fit the line of a phone


class _Mark(Postprocessor):
    """Marks code in a line; blocks of code begin otherwise, or hold several lines."""

    def run(self, text: str) -> str:
        def mark(found: re.Match[str]) -> str:
            return f'<code class="whole">{found[1]}</code>' if len(unescape(found[1])) <= LONGEST else found[0]

        return re.sub(r"(?<!<pre>)<code>([^<\n]+)</code>", mark, text)


class Names(Extension):
    """Marks short code with the class "whole"."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - its name there
        """Runs after code has been put back into the page."""
        md.postprocessors.register(_Mark(md), "names", 1)


def makeExtension(**settings: object) -> Names:  # noqa: N802 - its name there
    """What Python-Markdown asks a module for."""
    return Names(**settings)
