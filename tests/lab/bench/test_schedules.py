"""The schedules that a run can name."""

from pathlib import Path

import pytest
import torch

from metastep.lab.bench.schedules import (
    PUBLISHED_SNAPSHOTS,
    SCHEDULES,
    make_schedule,
    published_snapshots,
    scaled_by,
    schedule_is_there,
    split_schedules,
)
from metastep.schedules import FixedOutput, LearnedLR, MLRSNet, Phased, load_schedule, save_schedule


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three snapshots."""
    paths = []
    for k in range(3):
        torch.manual_seed(k)
        paths.append(str(tmp_path / f"s{k}.safetensors"))
        save_schedule(MLRSNet(hidden_size=4), paths[-1])
    return paths


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != PUBLISHED_SNAPSHOTS])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 10, 1000])
def test_every_named_schedule_gives_a_rate_in_every_step_of_every_length(name: str, total_steps: int) -> None:
    schedule, learns = make_schedule(name, total_steps, text=False)
    assert learns is (name == "mlr-snet")
    state = schedule.init_state()
    for _ in range(total_steps):
        alpha, state = schedule.query(2.0, state)
        assert 0 <= alpha <= (1.06 if name == "greedy" else 1)  # it may go up by a twentieth


def test_published_snapshots_are_phases_in_the_order_of_their_steps(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlrsnet"
    folder.mkdir()
    weights = []
    for step, file in ((100, files[0]), (1, files[1]), (20, files[2])):
        weights.append((step, load_schedule(file)))
        (folder / f"mlr_snet_{step}.pth").write_bytes(Path(file).read_bytes())
    monkeypatch.setenv("METASTEP_DATA", str(tmp_path))
    assert [file.stem for file in published_snapshots()] == ["mlr_snet_1", "mlr_snet_20", "mlr_snet_100"]
    made, learns = make_schedule(PUBLISHED_SNAPSHOTS, 30, text=True)
    assert isinstance(made, Phased)
    assert not learns
    for member, (_, schedule) in zip(made.schedules, sorted(weights, key=lambda pair: pair[0]), strict=True):
        assert torch.equal(
            member.query(2.0, member.init_state())[1][0], schedule.query(2.0, schedule.init_state())[1][0]
        )


def test_a_scale_that_is_given_is_not_measured_and_not_written_into_files(files: list[str], tmp_path: Path) -> None:
    schedule = scaled_by(load_schedule(files[0]), 0.003)
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
    lr = LearnedLR(optimizer, schedule, num_classes=10, initial_loss=2.3)
    assert lr.scale == 0.003
    save_schedule(schedule, tmp_path / "kept.safetensors")
    assert load_schedule(tmp_path / "kept.safetensors").config() == load_schedule(files[0]).config()


@pytest.mark.parametrize("text", [False, True])
def test_files_joined_are_phases_that_know_whether_they_read_text(files: list[str], text: bool) -> None:
    schedule, learns = make_schedule("+".join(files), 30, text=text)
    assert not learns
    assert isinstance(schedule, Phased)
    assert schedule.boundaries == (10, 20)
    assert schedule.scale.text is text
    assert all(member.scale.text is text for member in schedule.schedules)


def test_the_control_of_a_schedule_is_a_staircase(files: list[str]) -> None:
    schedule, _ = make_schedule(f"{'+'.join(files)}@staircase", 30, text=False)
    assert isinstance(schedule, Phased)
    assert all(isinstance(member, FixedOutput) for member in schedule.schedules)
    one, _ = make_schedule(f"{files[0]}@staircase", 30, text=False)
    assert isinstance(one, Phased)


@pytest.mark.parametrize(
    ("schedule", "error", "words"),
    [
        ("cosin", ValueError, "schedule must be a known name, got 'cosin'; did you mean cosine"),
        ("zzz", ValueError, "known: calibrated, constant, cosine"),
        ("", ValueError, "schedule must be a known name, got ''"),
        ("cosine@staircase", ValueError, "schedule must be a known name"),
        ("no/such.pth", FileNotFoundError, "no schedule file 'no/such.pth'"),
        ("{file}@stairs", ValueError, "schedule may end in @staircase, got @stairs"),
        ("{file}+gone.safetensors", FileNotFoundError, "no schedule file 'gone.safetensors'"),
    ],
)
def test_what_is_no_schedule_is_refused(files: list[str], schedule: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_schedule(schedule.replace("{file}", files[0]), 30, text=False)


#: Folders and files with every sign that has a meaning elsewhere on the command line.
ODD = ("lr+warmup/s.safetensors", "me@firm/s.safetensors", "a,b/c,d.safetensors", "x=1/y=2.safetensors", "a@staircase")


@pytest.fixture
def odd(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Schedule files with such names, relative to the working folder."""
    for name in ODD:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Path(files[0]).read_bytes())
    monkeypatch.chdir(tmp_path)
    return [*ODD]


def test_what_exists_as_a_file_is_a_file(odd: list[str], tmp_path: Path) -> None:
    for name in (*odd, *(str(tmp_path / name) for name in odd)):
        assert schedule_is_there(name)
        assert isinstance(make_schedule(name, 30, text=False)[0], MLRSNet)
        phases, _ = make_schedule(f"{name}+{odd[0]}@staircase", 30, text=False)
        assert isinstance(phases, Phased)
        assert len(phases.schedules) == 2


def test_a_list_of_schedules_is_split_beside_the_names_of_files_and_at_labels(odd: list[str], files: list[str]) -> None:
    plain, at, comma, equal, control = odd
    given = f"cosine, {plain},{at},mine={comma}, {comma},{equal},own={equal},{control},c={plain}@staircase,{plain}+{at}"
    assert split_schedules(given) == [
        ("cosine", "cosine"),
        ("s", plain),
        ("s", at),
        ("mine", comma),
        ("c,d", comma),
        ("y=2", equal),
        ("own", equal),
        ("a@staircase", control),
        ("c", f"{plain}@staircase"),
        ("s+s", f"{plain}+{at}"),
    ]
    assert split_schedules(f"mine={files[0]}") == [("mine", files[0])]


@pytest.mark.parametrize(
    ("text", "label", "schedule"),
    [
        ("cosine", "cosine", "cosine"),
        ("mine=a/b.safetensors", "mine", "a/b.safetensors"),
        ("a/b.safetensors", "b", "a/b.safetensors"),
        ("a/b.pth+c.pth@staircase", "b+c@staircase", "a/b.pth+c.pth@staircase"),
        ("x" * 5000, "x" * 5000, "x" * 5000),
    ],
)
def test_a_candidate_is_a_name_a_file_or_both(text: str, label: str, schedule: str) -> None:
    assert split_schedules(text) == [(label, schedule)]
