"""Runs notebooks, and shows them as pages; they are kept without outputs: the site shows what the code gives today."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient

from docs_site.stage import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_SOURCES = ROOT / "src"


def execute(path: Path, settings: dict[str, Any] | None = None, folder: str | None = None) -> nbformat.NotebookNode:
    """Run a notebook in a kernel of this Python; the first cell that fails raises.

    Args:
        path: the notebook.
        settings: values for names that its cell tagged "settings" sets, such as ``{"STEPS": 20}``.
        folder: where it runs and leaves files; its own folder by default.

    Raises:
        ValueError: for a setting that the cell does not have.
        nbclient.exceptions.CellExecutionError: for a cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    if settings:
        (cell,) = (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", []))
        for name, value in settings.items():
            if f"{name} = " not in cell.source:
                raise ValueError(f"settings: {path.name} sets no {name}.")
            cell.source += f"\n{name} = {value!r}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder or str(path.parent)}}
    )
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # it need not say that it listens on this machine alone
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})
    return notebook


def _run_once(path: Path, kept: Path) -> nbformat.NotebookNode:
    """Run a notebook unless it, and the package, are as they were."""
    files = [path, *sorted(_SOURCES.rglob("*.py"))]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    copy = kept / f"{path.stem}-{key}.ipynb"
    if not copy.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        executed = execute(path, folder=str(kept))
        nbformat.write(executed, copy)
    return nbformat.read(copy, as_version=4)


def as_markdown(path: Path, place: Path, kept: Path | None) -> str:
    """The page of a notebook; its pictures are written beside ``place``.

    Args:
        path: the notebook.
        place: where the page will lie.
        kept: where executed notebooks are kept; None shows it without outputs.
    """
    notebook = nbformat.read(path, as_version=4) if kept is None else _run_once(path, kept)
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            parts += _shown(output, f"{path.stem}-{number}", place, cell.metadata.get("alt", "plot"))
    parts.append(f"*This page is a notebook, run when the site was built: `docs/notebooks/{path.name}`.*")
    return "\n\n".join(parts) + "\n"


def _shown(output: nbformat.NotebookNode, name: str, place: Path, alt: str) -> list[str]:
    """An output as Markdown."""
    if output.output_type == "stream":
        return [f"```text\n{output.text.rstrip()}\n```"]
    data = output.get("data", {})
    if "image/svg+xml" in data:
        place.parent.mkdir(parents=True, exist_ok=True)
        (place.parent / f"{name}.svg").write_text(data["image/svg+xml"], "utf-8")
        return [f'<img class="figure" src="{name}.svg" alt="{alt}">']
    if "image/png" in data:
        place.parent.mkdir(parents=True, exist_ok=True)
        (place.parent / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
        return [f'<img class="figure" src="{name}.png" alt="{alt}">']
    return [f"```text\n{data['text/plain'].rstrip()}\n```"] if "text/plain" in data else []
