"""Schedules in folders and on the hub: what comes back is what went, nothing is run, nothing is sent by mistake.

No test reaches a network: downloads and uploads are played by folders.
"""

import doctest
import importlib
import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import metastep as ms
from metastep.schedules.files import pretrained_card
from metastep.schedules.model_card import ScheduleCard

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: the extra [hub]")
from huggingface_hub import HfApi, errors

from metastep.integrations import hub
from metastep.integrations.hub import HubSchedule, from_pretrained, push_to_hub, save_pretrained


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever asks the network in spite of everything finds a closed door, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def learned() -> ms.MLRSNet:
    torch.manual_seed(0)
    return ms.MLRSNet(hidden_size=5)


def same(one: ms.Schedule, other: ms.Schedule) -> bool:
    weights = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.config() == other.config() and all(torch.equal(a, b) for a, b in weights)


# ---- folders


@pytest.mark.parametrize("name", ["MLRSNet", "Cosine", "shipped"])
def test_a_schedule_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    makers = {
        "MLRSNet": learned,
        "Cosine": lambda: ms.Cosine(9),
        "shipped": lambda: ms.load_schedule("mlrsnet-cifar10"),
    }
    schedule = makers[name]()
    folder = save_pretrained(schedule, tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder"
    assert same(from_pretrained(folder), schedule)
    assert same(from_pretrained(str(folder)), schedule)
    assert same(ms.load_schedule(folder / "schedule.safetensors"), schedule)


def test_the_configuration_lies_beside_it_for_people_and_is_never_read(tmp_path: Path) -> None:
    folder = save_pretrained(learned(), tmp_path / "it")
    described = json.loads((folder / "config.json").read_text())
    assert (described["library_name"], described["class"]) == ("metastep", "MLRSNet")
    assert described["config"]["hidden_size"] == 5
    (folder / "config.json").write_text('{"class": "Cosine", "schedule": 3')
    assert same(from_pretrained(folder), learned())


def test_the_card_is_generated_or_given(tmp_path: Path) -> None:
    generated = (save_pretrained(learned(), tmp_path / "mine") / "README.md").read_text()
    assert generated.startswith("---\nlibrary_name: metastep\n")
    assert "# mine\n" in generated
    assert "Transfer: not measured." in generated
    given = ScheduleCard(name="called", summary="So.", limits=["Short runs."])
    assert "* Short runs." in (save_pretrained(learned(), tmp_path / "given", card=given) / "README.md").read_text()
    text = pretrained_card("mlrsnet-cifar10")
    assert (save_pretrained(learned(), tmp_path / "text", card=text) / "README.md").read_text() == text


def test_a_card_that_somebody_edited_is_kept_unless_another_is_given(tmp_path: Path) -> None:
    save_pretrained(learned(), tmp_path)
    (tmp_path / "README.md").write_text("edited")
    save_pretrained(ms.Cosine(3), tmp_path)
    assert (tmp_path / "README.md").read_text() == "edited"
    assert same(from_pretrained(tmp_path), ms.Cosine(3))
    save_pretrained(ms.Cosine(3), tmp_path, card=ScheduleCard(name="new", summary="A cosine."))
    assert "# new" in (tmp_path / "README.md").read_text()


def test_the_mixin_alone_does_the_same(tmp_path: Path) -> None:
    HubSchedule(learned()).save_pretrained(tmp_path / "it")
    assert same(HubSchedule.from_pretrained(tmp_path / "it").schedule, learned())


# ---- bad input


def test_a_folder_without_a_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no schedule\.safetensors in .*save_pretrained"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("asked", [Path("nowhere"), "./nowhere", "../nowhere/x", "C:\\nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(asked: str | Path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        from_pretrained(asked)


@pytest.mark.parametrize("asked", ["a/b/c", "user/na me", "user//name", "-user/name", "", "user/..name"])
def test_a_wrong_name_of_a_repository_is_refused_before_anything_is_sent(asked: str) -> None:
    with pytest.raises(
        ValueError, match="repo_or_folder must be a folder that is there or a repository such as user/na"
    ):
        from_pretrained(asked)
    with pytest.raises(ValueError, match="repo_id must be the name of a repository such as user/name"):
        push_to_hub(learned(), asked)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError, match="folder must be a folder or new"):
        save_pretrained(learned(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_other_things_than_schedules_and_cards_are_refused(tmp_path: Path) -> None:
    class Mine(ms.Constant):
        pass

    with pytest.raises(TypeError, match="schedule must be a metastep schedule, got Linear"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="card must be a ScheduleCard, its text or None, got dict"):
        save_pretrained(learned(), tmp_path / "b", card={"name": "x"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule must be one of .*got Mine"):
        save_pretrained(Mine(), tmp_path / "c")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = save_pretrained(learned(), tmp_path) / "schedule.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ms.ScheduleFileError, match="checksum"):
        from_pretrained(tmp_path)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_pickle_under_the_name_of_the_schedule_is_not_run(
    writer: str, place: str, tmp_path: Path, monkeypatch
) -> None:
    repository, target = tmp_path / "trap", tmp_path / "was_run"
    repository.mkdir()
    file = repository / "schedule.safetensors"
    content = {"layer3.weight": Trap(target)}
    file.write_bytes(pickle.dumps(content)) if writer == "pickle" else torch.save(content, file)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(file))
    with pytest.raises(ms.ScheduleFileError, match=r"schedule\.safetensors"):
        from_pretrained(repository if place == "folder" else "user/trap")
    assert not target.exists()


def test_a_missing_huggingface_hub_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "metastep.integrations.hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "metastep\[hub\]"'):
        importlib.import_module("metastep.integrations.hub")


# ---- the hub


def test_only_the_schedule_is_downloaded_with_all_that_was_asked(tmp_path: Path, monkeypatch) -> None:
    remote, asked = save_pretrained(learned(), tmp_path / "remote"), []

    def download(repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename, options))
        return str(remote / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    found = from_pretrained("user/name", revision="v1", local_files_only=True, cache_dir=tmp_path, token="t")
    assert same(found, learned())
    options = {"revision": "v1", "cache_dir": tmp_path, "force_download": False, "local_files_only": True, "token": "t"}
    assert asked == [("user/name", "schedule.safetensors", options)]


def test_what_was_downloaded_before_is_read_offline(tmp_path: Path) -> None:
    """The hub's cache as it lies on a disk: a commit's folder, and the name of the branch that points to it."""
    commit, repository = "a" * 40, tmp_path / "cache" / "models--user--name"
    save_pretrained(learned(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert same(from_pretrained("user/name", cache_dir=tmp_path / "cache"), learned())
    assert same(from_pretrained("user/name", cache_dir=tmp_path / "cache", revision=commit), learned())


def test_what_was_not_downloaded_before_says_so_offline(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="user/name was not downloaded before and cannot be now"):
        from_pretrained("user/name", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("error", "name", "says"),
    [
        (errors.RepositoryNotFoundError, "user/name", "no repository 'user/name' on the hub, or it is private"),
        (errors.RepositoryNotFoundError, "mlrsnet-cifar10", r'metastep\.load_schedule\("mlrsnet-cifar10"\) reads'),
        (errors.RevisionNotFoundError, "user/name", "user/name has no revision 'v9'"),
        (
            getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError),
            "user/name",
            r"'v9' has no schedule\.safetensors",
        ),
    ],
)
def test_what_the_hub_answers_is_said_in_one_line(error, name: str, says: str, monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=says) as caught:
        from_pretrained(name, revision="v9")
    assert "\n" not in str(caught.value)


def test_a_push_sends_the_schedule_its_configuration_and_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict = {}

    class Made:
        repo_id = "user/name"

    def upload(_: HfApi, **options: object) -> str:
        folder = Path(str(options["folder_path"]))
        sent.update(options, files={file.name: file.read_bytes() for file in folder.iterdir()})
        return "https://hub.example/commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda _, **options: sent.update(made=options) or Made())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    address = push_to_hub(
        learned(), "user/name", private=True, branch="b", create_pr=True, commit_message="m", token="t"
    )
    assert address == "https://hub.example/commit"
    assert sent["made"]["private"] is True
    assert (sent["repo_id"], sent["revision"], sent["create_pr"], sent["commit_message"]) == (
        "user/name",
        "b",
        True,
        "m",
    )
    assert sorted(sent["files"]) == ["README.md", "config.json", "schedule.safetensors"]
    card = sent["files"]["README.md"].decode()
    assert "# name\n" in card
    assert 'schedule = from_pretrained("user/name")' in card


def test_what_cannot_be_saved_makes_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(ms.Constant):
        pass

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("made a repository"))
    with pytest.raises(TypeError, match="got Mine"):
        push_to_hub(Mine(), "user/name")


# ---- what is written about it


def test_the_docstrings_examples_run(tmp_path: Path) -> None:
    names = {"Cosine": ms.Cosine, "load_schedule": ms.load_schedule, "tmp_path": tmp_path}
    failed, tried = doctest.testmod(hub, extraglobs=names)
    assert failed == 0 < tried


def test_the_example_runs(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "share_a_schedule.py"
    folder, verdict = runpy.run_path(str(example))["main"](tmp_path / "it")
    assert len(from_pretrained(folder).schedules) == 3
    assert verdict in (folder / "README.md").read_text()
