"""The files around the code: workflows that can run, a citation that can be cited, forms that can be filled in."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import metastep as ms

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
YAML = [*GITHUB.rglob("*.yml"), ROOT / "CITATION.cff"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def all_steps(path: Path) -> list[dict[str, Any]]:
    """The steps of a workflow's jobs, or of a composite action."""
    found = read(path)
    jobs = found["jobs"].values() if "jobs" in found else [found["runs"]]
    return [step for job in jobs for step in job["steps"]]


ACTIONS = sorted(GITHUB.glob("actions/*/action.yml"))


# ---- workflows


def test_there_are_workflows_for_tests_lint_docs_and_release() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "lint", "docs", "release"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_triggers_few_permissions_and_limits(path: Path) -> None:
    workflow = read(path)
    assert workflow[True]  # YAML reads the key `on` as a truth value
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 60
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert {needed for needed in [job.get("needs")] if needed} <= set(workflow["jobs"])


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_actions_are_pinned_by_a_major_tag_or_lie_in_the_repository(path: Path) -> None:
    for step in all_steps(path):
        uses = step.get("uses", "./")
        if not uses.startswith("./"):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", uses), uses
        elif uses != "./":
            action = read(ROOT / uses / "action.yml")
            assert set(step.get("with", {})) <= set(action["inputs"])


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_workflow_uses_a_secret_or_lets_a_stranger_write_into_a_command(path: Path) -> None:
    assert "secrets." not in path.read_text()
    for step in all_steps(path):
        assert "${{" not in step.get("run", ""), "pass it through env: an expression in a command is pasted into it"


def test_every_make_target_that_a_workflow_calls_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        target
        for path in [*WORKFLOWS, *ACTIONS]
        for step in all_steps(path)
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
    }
    assert called == {"test", "test-slow", "lint", "docs", "venv"}
    assert called <= targets


def test_the_tests_run_on_every_python_that_the_package_names() -> None:
    named = {line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    matrix = set(read(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python-version"])
    assert named <= matrix
    assert PROJECT["requires-python"].removeprefix(">=") == min(matrix, key=lambda v: int(v.split(".")[1]))


def test_publishing_is_trusted_and_comes_after_the_checks() -> None:
    publish = read(GITHUB / "workflows" / "release.yml")["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert publish["environment"]


# ---- citation


def test_the_citation_has_what_the_format_requires_and_the_version_of_the_package() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license"} <= citation.keys()
    assert citation["version"] == ms.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]


def test_the_citation_names_both_papers_with_their_authors() -> None:
    references = read(ROOT / "CITATION.cff")["references"]
    assert [entry["identifiers"][0]["value"] for entry in references] == ["arXiv:2007.14546", "arXiv:2008.07277"]
    for entry in references:
        assert {"type", "title", "authors", "year"} <= entry.keys()
        assert all({"given-names", "family-names"} == author.keys() for author in entry["authors"])


# ---- forms and policy


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_named_fields_of_known_kinds(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_security_policy_says_how_to_report_and_what_a_file_can_do() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "private" in text
    assert "advisory" in text
    for loader in ("load_schedule", "from_pretrained", "--resume", ".pth", "CIFAR"):
        assert loader in text
    assert not re.search(r"[\w.]+@[\w.]+", text)  # no address that nobody reads


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_file_is_yaml_without_a_name_given_twice(path: Path) -> None:
    assert duplicates(path.read_text(encoding="utf-8")) == []


def duplicates(text: str) -> list[str]:
    """Keys that stand twice in one mapping, of which YAML's readers silently keep the last."""
    found: list[str] = []

    def look(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            found.extend(key for key in set(keys) if keys.count(key) > 1)
            for _, value in node.value:
                look(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                look(value)

    look(yaml.compose(text, Loader=yaml.SafeLoader))
    return found


def test_a_name_given_twice_is_noticed() -> None:
    assert duplicates("a: 1\nb: [{c: 1, c: 2}]\n") == ["c"]
