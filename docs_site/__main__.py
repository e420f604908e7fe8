"""Build the site; stop at the first thing that is not right."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from docs_site.build import SiteError, build
from docs_site.stage import ROOT


def main() -> int:
    """Build into ``build/documentation``, then put the site in place of ``site/``."""
    parser = argparse.ArgumentParser(prog="python -m docs_site", description=__doc__)
    parser.add_argument("--without-outputs", action="store_true", help="show the notebooks without running them")
    options = parser.parse_args()
    try:
        site = build(ROOT / "build" / "documentation", run_notebooks=not options.without_outputs)
    except SiteError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    shutil.move(site, ROOT / "site")
    pages = len(list(Path(ROOT / "site").rglob("*.html")))
    sys.stdout.write(f"{pages} pages in site/; to look at them: python -m http.server -d site\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
