"""From the sources to the finished site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

from docs_site.check import forget_hosts, problems
from docs_site.notebooks import as_markdown
from docs_site.stage import ROOT, BrokenLink, Stage

if TYPE_CHECKING:
    from pathlib import Path


class SiteError(RuntimeError):
    """The site cannot be built as it stands; the message says why."""


class _Settings(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name Python objects that are not needed here."""


_Settings.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def settings(root: Path = ROOT) -> dict[str, Any]:
    """What mkdocs.yml says."""
    found: dict[str, Any] = yaml.load((root / "mkdocs.yml").read_text("utf-8"), Loader=_Settings)
    return found


def navigation(root: Path = ROOT) -> list[str]:
    """The pages that the navigation names, in order; without those that are awaited."""
    awaited = {
        page for page in settings(root).get("extra", {}).get("awaited", []) if not (root / "docs" / page).is_file()
    }

    def walk(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [page for value in values for page in walk(value)]  # type: ignore[attr-defined]

    return [page for page in walk(settings(root)["nav"]) if page not in awaited]


def _configure(out: Path, root: Path, named: set[str]) -> None:
    """Write the settings for zensical: a line of the navigation whose page is awaited is left out."""
    entry = re.compile(r"^ +- (?:.*: )?([\w/-]+\.md)$")
    lines = (root / "mkdocs.yml").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if (found := entry.match(line)) is None or found[1] in named]
    (out / "mkdocs.yml").write_text("".join(kept), "utf-8")


def build(out: Path, *, run_notebooks: bool = True, root: Path = ROOT) -> Path:
    """Build the site strictly: what would be a warning is an error.

    Args:
        out: a folder for it; notebooks that did not change are not run again there.
        run_notebooks: False shows their code without what it gives.
        root: the repository.

    Returns:
        The folder of the site.

    Raises:
        SiteError: for a page that is missing from the navigation, a link that leads nowhere, a cell that fails, an
            equation that cannot be read, or something that would be loaded from elsewhere.
    """
    out.mkdir(parents=True, exist_ok=True)
    stage = Stage(out / "docs", root)
    try:
        stage.pages()
        for notebook in sorted((root / "docs" / "notebooks").glob("*.ipynb")):
            place = stage.place_of(notebook).with_suffix(".md")
            stage.write(as_markdown(notebook, place, out / "executed" if run_notebooks else None), notebook, place)
    except BrokenLink as error:
        raise SiteError(str(error)) from error
    named = set(navigation(root))
    own = {path.relative_to(stage.out).as_posix() for path in stage.out.rglob("*.md")}
    own = {page for page in own if not page.startswith("repository/")}
    if named != own:
        lacking, forgotten = sorted(named - own), sorted(own - named)
        raise SiteError(f"mkdocs.yml names pages that are not there: {lacking}; leaves out: {forgotten}.")
    _configure(out, root, named)
    shutil.rmtree(out / "site", ignore_errors=True)
    shutil.rmtree(out / ".cache", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(out / "mkdocs.yml"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)  # without its colours
        unframed = [line for line in said.splitlines() if not re.match(r"Traceback|\s+File |    |  [│^~]", line)]
        raise SiteError("\n".join(["zensical:", *unframed]))
    site = out / "site"
    forget_hosts(site)
    if wrong := problems(site):
        raise SiteError("\n".join(wrong))
    return site
