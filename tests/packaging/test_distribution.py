"""The wheel and the sdist: complete, light in what they require, and at work where there is nothing else."""

import email
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.packaging.conftest import REPOSITORY

import metastep as ms

ROOT = Path(__file__).parents[2]
CORE = {"torch", "numpy", "safetensors", "msgspec", "filelock", "typer", "rich"}
#: What may be heavy, slow or missing; none of it is imported by ``import metastep``.
HEAVY = [
    "matplotlib", "altair", "vl_convert", "sklearn", "scipy", "pyarrow", "cv2", "tensorboard", "optuna", "ray",
    "lightning",
    "transformers", "accelerate", "huggingface_hub", "pandas", "IPython", "torch._dynamo", "torch._inductor",
]  # fmt: skip


def package_files() -> set[str]:
    """Every file of the package in the checkout, as it is called inside a wheel."""
    source = ROOT / "src"
    files = (path for path in (source / "metastep").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(source).as_posix() for path in files}


def metadata(built) -> email.message.Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def test_the_wheel_has_every_file_of_the_package_and_no_other(built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert names == package_files()
    assert licences
    for ending in (".cpp", ".html", ".css", ".js", ".safetensors", ".md", "py.typed"):
        assert any(name.endswith(ending) for name in names), f"no {ending} in the wheel"


def test_the_sdist_has_what_builds_and_describes_the_package_and_no_records(built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in package_files()} <= names
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "SECURITY.md"} <= names
    assert not [name for name in names if name.startswith(("results/", "tests/", "docs/"))]


def test_the_library_is_light(built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        laboratory = ("metastep/lab/", "metastep/cli/")
        library = [one for one in wheel.infolist() if not one.filename.startswith(laboratory)]
    assert sum(one.compress_size for one in library) < 400_000
    assert built.wheel.stat().st_size < 800_000
    assert built.sdist.stat().st_size < 800_000


def test_only_the_core_is_required_and_everything_else_is_an_extra(built) -> None:
    requirements = [Requirement(text) for text in metadata(built).get_all("Requires-Dist")]
    always = {r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert always == CORE
    assert {"data", "report", "track", "bench", "ray", "hub", "all"} <= set(metadata(built).get_all("Provides-Extra"))


def test_the_metadata_say_what_a_registry_shows(built) -> None:
    found = metadata(built)
    assert (found["Name"], found["Version"]) == ("metastep", ms.__version__)
    assert found["License-Expression"] == "MIT"
    assert found["Requires-Python"] == ">=3.11"
    assert found["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in found.get_all("Classifier")


def test_the_page_on_an_index_has_addresses_and_links_that_work_there(built) -> None:
    found = metadata(built)
    urls = dict(text.split(", ") for text in found.get_all("Project-URL"))
    assert urls["Source"] == REPOSITORY
    assert urls["Changelog"] == f"{REPOSITORY}/blob/v{ms.__version__}/CHANGELOG.md"
    page = found.get_payload()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert all(link.startswith("https://") for link in links)
    inside = [link.removeprefix(f"{REPOSITORY}/").split("/", 2) for link in links if link.startswith(REPOSITORY)]
    assert len(inside) > 20
    assert {kind for kind, _, _ in inside} == {"blob", "raw"}
    assert all((ROOT / path.partition("#")[0]).exists() for _, _, path in inside)


def test_without_an_address_none_is_made_up() -> None:
    """What the hook leaves is the README as it is; a picture and a link differ where there is an address."""
    with_absolute_links = runpy.run_path(str(ROOT / "hatch_build.py"))["with_absolute_links"]
    text = "[a](docs/a.md#b) ![c](d.png) [e](#f) [g](https://h.org)"
    assert with_absolute_links(text, "https://x.org/y", "v1") == (
        "[a](https://x.org/y/blob/v1/docs/a.md#b) ![c](https://x.org/y/raw/v1/d.png) [e](#f) [g](https://h.org)"
    )
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    assert hook["repository"] == "" or hook["repository"].startswith("https://")


# ---- in an environment of the core alone


def test_nothing_but_the_core_is_in_the_environment(installed) -> None:
    code = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    names = {name.lower() for name in json.loads(installed("python", "-c", code).stdout)}
    assert names >= {"metastep", *CORE}
    extras = {"scikit-learn", "matplotlib", "altair", "vl-convert-python", "huggingface-hub", "transformers", "optuna"}
    assert not names & {*extras, "pytest"}


def test_the_help_does_not_import_torch(installed) -> None:
    done = installed("python", "-X", "importtime", "-m", "metastep", "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert {"typer", "metastep.cli"} <= imported
    assert not imported & {"torch", "numpy", "safetensors", *HEAVY}


def test_the_program_lists_what_is_shipped(installed) -> None:
    listed = installed("metastep", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "mlrsnet-cifar10" in json.loads(listed.stdout)["schedules"]


def test_a_missing_extra_is_named_in_one_line(installed, tmp_path: Path) -> None:
    done = installed("metastep", "train", "digits/mlp", "--steps", "3", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "metastep[data]" in done.stderr


def test_a_new_project_trains_with_the_core_alone(installed, tmp_path: Path) -> None:
    made = installed("metastep", "new", "mine", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    typed = made.stdout.splitlines()[-1].split()
    done = installed(*typed, "--steps", "300", "--json", folder=tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["final"]["accuracy"] > 0.9


def first_block(page: str) -> str:
    return re.search(r"```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]


#: What a reader of the README has: data, a model, an optimizer, a schedule in a file. Importing metastep comes first.
BEFORE = """
import json, sys
import metastep as ms
for name in ms.__all__: getattr(ms, name)
heavy = [name for name in {heavy} if name in sys.modules]
import torch
torch.manual_seed(0)
x = torch.randn(64, 20)
loader = [(x, (x[:, 0] > 0).long())] * 12
model, criterion = torch.nn.Linear(20, 10), torch.nn.functional.cross_entropy
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ms.save_schedule(ms.MLRSNet(), "mine.safetensors")
"""
AFTER = """
readme = [lr.steps, *lr.get_last_lr()]
lr.detach()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
lr = ms.LearnedLR(optimizer, ms.load_schedule("mlrsnet-cifar10"), num_classes=10, total_steps=12)
hyper = ms.HyperSGD(model.parameters(), lr=0.1, levels=("global", "layer", "unit"))
losses = []
for x, y in loader:
    loss = criterion(model(x), y)
    model.zero_grad()
    loss.backward()
    lr.observe(loss)
    optimizer.step()
    hyper.step()
    losses.append(loss.item())
print(json.dumps({"heavy": heavy, "file": ms.__file__, "readme": readme, "losses": losses}))
"""


@pytest.fixture(scope="module")
def new_user(installed, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What someone finds who installs the wheel and types the README's first block, warnings being errors."""
    block = re.sub(
        r'load_schedule\("[^"]*\.safetensors"\)', 'load_schedule("mine.safetensors")', first_block("README.md")
    )
    code = BEFORE.format(heavy=HEAVY) + block + AFTER
    done = installed("python", "-W", "error", "-c", code, folder=tmp_path_factory.mktemp("user"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_public_names_import_nothing_heavy(new_user: dict) -> None:
    assert "site-packages" in new_user["file"]
    assert new_user["heavy"] == []


def test_the_first_block_of_the_readme_runs(new_user: dict) -> None:
    steps, rate = new_user["readme"]
    assert steps == 12
    assert 0 < rate < 10


def test_shipped_schedules_and_optimizers_work_with_the_core_alone(new_user: dict) -> None:
    assert new_user["losses"][-1] < new_user["losses"][0]


#: Everything a user of the library does, without the laboratory and the command line.
LIBRARY_ALONE = """
import importlib, pkgutil
import torch
import metastep as ms
assert "site-packages" not in ms.__file__ and not importlib.util.find_spec("metastep.lab"), ms.__file__
torch.manual_seed(0)
for name in ms.__all__: getattr(ms, name)
for module in pkgutil.walk_packages(ms.__path__, "metastep."):
    if not module.name.startswith(("metastep.integrations.", "metastep.__main__")):
        importlib.import_module(module.name)
x, y = torch.randn(64, 8), torch.randint(3, (64,))
loss_of = lambda: torch.nn.functional.cross_entropy(model(x), y)
losses = []
for kind in ("pretrained", "meta", "hyper"):
    model = torch.nn.Linear(8, 3)
    if kind == "hyper":
        optimizer = ms.HyperAdam(model.parameters(), lr=0.01, levels=("global", "layer"), compiled=False)
    elif kind == "meta":
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        lr = ms.LearnedLR(base, ms.MLRSNet(), num_classes=3)
        optimizer = ms.MetaLearner(lr, validation_loss=loss_of, every=2)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        lr = ms.LearnedLR(optimizer, total_steps=20)
    first = loss_of().item()
    for _ in range(20):
        loss = loss_of()
        model.zero_grad()
        loss.backward()
        if kind != "hyper":
            lr.observe(loss)
        optimizer.step()
    assert loss_of().item() < first, kind
    if kind == "meta":
        ms.save_schedule(lr.schedule, "mine.safetensors")
        ms.load_schedule("mine.safetensors")
print("done")
"""


def test_the_library_imports_and_works_without_the_laboratory(built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = [n for n in wheel.namelist() if not n.startswith(("metastep/lab/", "metastep/cli/"))]
        wheel.extractall(tmp_path / "library", members=names)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIBRARY_ALONE],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "library"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_this_environment_is_the_one_that_is_pinned() -> None:
    """The figures of the records and of the pages hold for the versions in constraints.txt."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name in CORE:
        assert importlib.metadata.version(name).partition("+")[0] == pinned[name]
