"""The notebooks run from the first cell to the last, on small settings, and become pages with what they show."""

import re
from pathlib import Path

import nbformat
import pytest
from docs_site.notebooks import as_markdown, execute
from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "notebooks"
SMALL = {
    "learn-and-carry-over": {"LEARN_STEPS": 60, "CARRY_STEPS": 60, "SEEDS": (1,)},
    "from-a-wrong-rate": {"STEPS": 60, "SEEDS": (0,), "RATES": (0.001, 0.1)},
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_every_notebook_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_and_becomes_a_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute(FOLDER / f"{name}.ipynb", SMALL[name], str(tmp_path))
    monkeypatch.setattr("docs_site.notebooks._run_once", lambda path, kept: notebook)
    text = as_markdown(FOLDER / f"{name}.ipynb", tmp_path / f"{name}.md", tmp_path)
    pictures = re.findall(r'<img class="figure" src="([^"]+)" alt="([^"]{20,})">', text)
    assert len(pictures) == 2
    assert all((tmp_path / file).stat().st_size > 1000 for file, _ in pictures)
    printed = "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    if name == "from-a-wrong-rate":
        plain, adapted = (
            float(re.search(rf"rate  0\.001:.*\b{who} +([\d.]+)", printed)[1]) for who in ("SGD", "HyperSGD")
        )
        assert adapted < plain / 2
    else:
        assert re.findall(r"^(\S.*?) +loss \d", printed, re.MULTILINE) == [
            "learned", "its control", "cosine from 0.1", "multistep from 0.1"
        ]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_a_setting_that_no_cell_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"from-a-wrong-rate\.ipynb sets no EPOCHS"):
        execute(FOLDER / "from-a-wrong-rate.ipynb", {"EPOCHS": 1})
