"""Schedules in folders and on the Hugging Face Hub: one safetensors file, and a card that people can read."""

import json
import tempfile
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.schedules import Schedule, load_schedule, save_schedule, shipped_schedules
from metastep.schedules.model_card import ScheduleCard

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'metastep.integrations.hub needs huggingface_hub: pip install "metastep[hub]".', name=error.name
    ) from error

#: The one file that is read back. It holds its configuration itself, under its checksum.
SCHEDULE_FILE = "schedule.safetensors"
#: For people, and for the hub's count of downloads; never read back.
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


class HubSchedule(ModelHubMixin, library_name="metastep", tags=["metastep", "learning-rate-schedule"]):
    """A schedule with its card as a ``ModelHubMixin``, for code that handles any such object.

    :func:`save_pretrained`, :func:`from_pretrained` and :func:`push_to_hub` are the short way.

    Args:
        schedule: any metastep schedule.
        card: a :class:`metastep.schedules.model_card.ScheduleCard`, or the text of the card; None for one that says
            what is known from the schedule itself.

    Attributes:
        schedule: the schedule.

    Raises:
        TypeError: if either is something else.

    Example:
        >>> from metastep.integrations.hub import HubSchedule
        >>> HubSchedule(Cosine(100)).save_pretrained(tmp_path / "cosine")
        >>> HubSchedule.from_pretrained(tmp_path / "cosine").schedule.factor_at(50)
        0.5
    """

    def __init__(self, schedule: Schedule, card: ScheduleCard | str | None = None) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a metastep schedule, got {type(schedule).__name__}.")
        if not isinstance(card, ScheduleCard | str | None):
            raise TypeError(f"card must be a ScheduleCard, its text or None, got {type(card).__name__}.")
        self.schedule, self.card = schedule, card

    def _save_pretrained(self, save_directory: Path) -> None:
        save_schedule(self.schedule, save_directory / SCHEDULE_FILE)
        described = {
            "library_name": "metastep",
            "class": type(self.schedule).__name__,
            "config": self.schedule.config(),
        }
        write_atomically(save_directory / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
        if self.card is not None:  # the mixin keeps a card that lies there; one that is given replaces it
            (save_directory / CARD_FILE).unlink(missing_ok=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **ignored: Any,  # what config.json says is not asked: the schedule's own file knows
    ) -> "HubSchedule":
        file = Path(model_id) / SCHEDULE_FILE
        if not Path(model_id).is_dir():
            file = Path(
                hf_hub_download(
                    model_id,
                    SCHEDULE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        elif not file.is_file():
            raise FileNotFoundError(f"no {SCHEDULE_FILE} in {model_id}; save_pretrained(schedule, folder) writes one.")
        return cls(load_schedule(file))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, made from the schedule and from what was given about it."""
        card = self.card or ScheduleCard(name="Schedule", summary=f"A {type(self.schedule).__name__}.")
        return ModelCard(card if isinstance(card, str) else card.markdown(self.schedule))


def save_pretrained(schedule: Schedule, folder: str | Path, *, card: ScheduleCard | str | None = None) -> Path:
    """Write a schedule and its card to a folder, ready for :func:`from_pretrained` or for the hub. Works offline.

    The folder then holds ``schedule.safetensors``, ``config.json`` and ``README.md``.

    Args:
        schedule: any metastep schedule.
        folder: made if it is not there. A card that lies there is kept unless ``card`` is given.
        card: as for :class:`HubSchedule`; :func:`metastep.schedules.files.pretrained_card` has those of our own.

    Returns:
        The folder.

    Raises:
        TypeError: for a schedule of a class that is not metastep's.
        OSError: if it cannot be written.

    Example:
        >>> from metastep.integrations.hub import from_pretrained, save_pretrained
        >>> folder = save_pretrained(load_schedule("mlrsnet-cifar10"), tmp_path / "mine")
        >>> sorted(file.name for file in folder.iterdir())
        ['README.md', 'config.json', 'schedule.safetensors']
        >>> len(from_pretrained(folder).schedules)
        3
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"folder must be a folder or new, {folder} is a file; give another.")
    default = ScheduleCard(name=folder.name or "schedule", summary=f"A {type(schedule).__name__}.")
    HubSchedule(schedule, card if card or (folder / CARD_FILE).is_file() else default).save_pretrained(folder)
    return folder


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Schedule:
    """Read a schedule from a folder, or from a repository on the hub: one file, in which nothing is run.

    Args:
        repo_or_folder: a folder that :func:`save_pretrained` wrote, or a repository, ``"user/name"``; a folder of that
            name comes first.
        revision: branch, tag or commit of the repository; a commit is what a result should name.
        local_files_only: use what was downloaded before; so does the environment variable ``HF_HUB_OFFLINE=1``.
        force_download: download again what was downloaded before.
        cache_dir: where downloads are kept; default: the hub's own folder.
        token: for private repositories; default: the one of ``hf auth login``.

    Raises:
        ValueError: if it is neither a folder nor the name of a repository.
        FileNotFoundError: if there is no such repository, revision or file, or none was downloaded before.
        ScheduleFileError: if the file is damaged, of another kind, or could be read only by running code inside it.
    """
    if not Path(repo_or_folder).is_dir():
        _refuse_a_path(repo_or_folder)
    try:
        if repo_or_folder == "":  # which pathlib would take for the folder that we are in
            raise HFValidationError("empty")
        return HubSchedule._from_pretrained(
            model_id=str(repo_or_folder),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        ).schedule
    except HFValidationError as error:
        raise ValueError(
            f"repo_or_folder must be a folder that is there or a repository such as user/name, got {repo_or_folder!r}."
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(_explain(str(repo_or_folder), revision, error)) from error


def push_to_hub(
    schedule: Schedule,
    repo_id: str,
    *,
    card: ScheduleCard | str | None = None,
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a metastep schedule",
    token: str | None = None,
) -> str:
    """Write a schedule and its card to a repository of yours on the hub; made if it is not there.

    Args:
        schedule: any metastep schedule.
        repo_id: ``"user/name"``.
        card: as for :func:`save_pretrained`.
        private: whether a repository that is made here is private; default: as your account has it.
        branch: default: the main one.
        create_pr: propose the change instead of making it.
        commit_message: what the commit says.
        token: default: the one of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        ValueError: if repo_id is no name of a repository; nothing is sent.
        TypeError: for a schedule of a class that is not metastep's; nothing is sent.
    """
    with tempfile.TemporaryDirectory() as folder:  # what cannot be written must not make a repository first
        save_pretrained(schedule, folder, card=card)
    usage = f'from metastep.integrations.hub import from_pretrained\n\nschedule = from_pretrained("{repo_id}")'
    default = ScheduleCard(name=repo_id.split("/")[-1], summary=f"A {type(schedule).__name__}.", usage=usage)
    try:
        return HubSchedule(schedule, card or default).push_to_hub(
            repo_id, commit_message=commit_message, private=private, branch=branch, create_pr=create_pr, token=token
        )
    except HFValidationError as error:
        raise ValueError(f"repo_id must be the name of a repository such as user/name, got {repo_id!r}.") from error


def _refuse_a_path(name: str | Path) -> None:
    """Raise a FileNotFoundError for what is meant as a folder that is not there; the network is not asked for it."""
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or "\\" in name:
        raise FileNotFoundError(
            f"no folder {str(name)!r}; give one that save_pretrained wrote, or a file to load_schedule."
        )


def _explain(name: str, revision: str | None, error: Exception) -> str:
    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, LocalEntryNotFoundError):
        return f"{name}{at} was not downloaded before and cannot be now; connect, or give a folder."
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; see its branches and tags on the hub."
    if isinstance(error, RepositoryNotFoundError):
        ours = (
            f' metastep.load_schedule("{name}") reads the one that comes with metastep.'
            if name in shipped_schedules()
            else ""
        )
        return f"no repository {name!r} on the hub, or it is private: run `hf auth login` or give a token.{ours}"
    return f"{name}{at} has no {SCHEDULE_FILE}; it holds no schedule that metastep saved."
