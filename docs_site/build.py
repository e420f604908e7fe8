"""From the sources to the finished site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

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


def navigation(root: Path = ROOT) -> list[str]:
    """The pages that the navigation names, in order."""

    def walk(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [page for value in values for page in walk(value)]  # type: ignore[attr-defined]

    return walk(yaml.load((root / "mkdocs.yml").read_text("utf-8"), Loader=_Settings)["nav"])


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
        raise SiteError(f"mkdocs.yml names pages that are not there: {named - own}; leaves out: {own - named}.")
    shutil.copyfile(root / "mkdocs.yml", out / "mkdocs.yml")
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
        raise SiteError(f"zensical:\n{done.stdout}{done.stderr}")
    site = out / "site"
    forget_hosts(site)
    if wrong := problems(site):
        raise SiteError("\n".join(wrong))
    return site
