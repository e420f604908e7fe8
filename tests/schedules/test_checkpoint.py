"""Schedules on disk: what is read is what was written, or a clear refusal; nothing inside a file is ever run."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.schedules.loops import net

import metastep as ms

fixed = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCHEDULES = {
    "MLRSNet": lambda: net(num_layers=2, gate_layout="ifgo", bottleneck=3, scale=ms.ScaleRule(mode="floor", text=True)),
    "single": lambda: net().float(),
    "half": lambda: net().bfloat16(),
    "FixedOutput": lambda: ms.FixedOutput(0.3, ms.ScaleRule(mode="freeze")),
    "Phased": lambda: ms.Phased([net(0), net(1), net(2)], total_steps=9),
    "Phased-unbound": lambda: ms.Phased([net(0), net(1)]),
    "staircase-control": lambda: ms.Phased([net(0), net(1)], total_steps=9).staircase(),
    "Calibrated": lambda: ms.Calibrated(9, level=0.7),
    "Constant": ms.Constant,
    "Linear": lambda: ms.Linear(9, min_factor=0.1),
    "TimeBased": lambda: ms.TimeBased(0.1),
    "Triangular": lambda: ms.Triangular(2, gamma=0.5),
    "GreedyLR": lambda: ms.GreedyLR(window=2, patience=0),
    "MultiStep": lambda: ms.MultiStep([3, 5], gamma=0.3),
    "Exponential": lambda: ms.Exponential(0.9),
    "Staircase": lambda: ms.Staircase((1.0, 0.1), total_steps=8),
    "Cosine": lambda: ms.Cosine(9),
    "WarmRestarts": lambda: ms.WarmRestarts(3),
    "OneCycle": lambda: ms.OneCycle(9),
    "WarmupStableDecay": lambda: ms.WarmupStableDecay(9),
    "ReduceOnPlateau": lambda: ms.ReduceOnPlateau(every=2, patience=0, factor=0.5),
}


def outputs(schedule: ms.Schedule) -> list[float]:
    if isinstance(schedule, ms.Phased):
        schedule = schedule.with_total_steps(8)
    state, found = schedule.init_state(), []
    for step in range(8):
        alpha, state = schedule.query(2.0 - step / 8, state)
        found.append(alpha)
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    schedule = SCHEDULES[name]()
    ms.save_schedule(schedule, tmp_path / "it")
    loaded = ms.load_schedule(str(tmp_path / "it"))
    assert type(loaded) is type(schedule)
    assert loaded.config() == schedule.config()
    for ours, theirs in zip(schedule.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert outputs(loaded) == outputs(schedule)


def test_every_public_schedule_can_be_saved() -> None:
    public = {name for name in ms.__all__ if isinstance(c := getattr(ms, name), type) and issubclass(c, ms.Schedule)}
    assert public - {"Schedule", "LearnedSchedule"} == {type(make()).__name__ for make in SCHEDULES.values()}


def test_one_snapshot_may_stand_in_a_file_twice(tmp_path: Path) -> None:
    snapshot = net()
    ms.save_schedule(ms.Phased([snapshot, snapshot], total_steps=4), tmp_path / "twice")
    assert ms.load_schedule(tmp_path / "twice").boundaries == (2,)


def test_a_schedule_of_somebody_elses_class_is_refused(tmp_path: Path) -> None:
    class Mine(ms.Constant):
        pass

    with pytest.raises(TypeError, match=r"schedule must be one of .*MLRSNet.*got Mine"):
        ms.save_schedule(Mine(), tmp_path / "mine")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no schedule file 'nowhere\.pth'"):
        ms.load_schedule("nowhere.pth")


# ---- damage


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    ms.save_schedule(net(hidden_size=1, bottleneck=1).float(), tmp_path / "small")
    return (tmp_path / "small").read_bytes()


def test_a_file_cut_at_any_byte_is_refused(small: bytes, tmp_path: Path) -> None:
    for size in range(len(small)):
        (tmp_path / "cut").write_bytes(small[:size])
        with pytest.raises(ms.ScheduleFileError, match="cut"):
            ms.load_schedule(tmp_path / "cut")


@given(data=st.data())
@fixed
def test_a_file_with_a_flipped_bit_is_refused(data: st.DataObject, small: bytes, tmp_path: Path) -> None:
    bit = data.draw(st.integers(0, 8 * len(small) - 1))
    damaged = bytearray(small)
    damaged[bit // 8] ^= 1 << bit % 8
    (tmp_path / "flipped").write_bytes(damaged)
    with pytest.raises(ms.ScheduleFileError, match="flipped"):
        ms.load_schedule(tmp_path / "flipped")


@given(content=st.binary(max_size=200))
@fixed
def test_random_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "random").write_bytes(content)
    with pytest.raises(ms.ScheduleFileError, match="random"):
        ms.load_schedule(tmp_path / "random")


def rewritten(data: bytes, **changes: str) -> bytes:
    """The file with other metadata, as a forger who knows the format would write it."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "99"}, "schema '99'"),
        ({"format": "other"}, "not a metastep schedule"),
        ({"class": "Cosine"}, "checksum"),
        ({"config": "{}"}, "checksum"),
        ({"sha256": "0"}, "checksum"),
    ],
)
def test_other_metadata_is_refused(changes: dict[str, str], message: str, small: bytes, tmp_path: Path) -> None:
    (tmp_path / "forged").write_bytes(rewritten(small, **changes))
    with pytest.raises(ms.ScheduleFileError, match=message):
        ms.load_schedule(tmp_path / "forged")


def test_the_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ms.ScheduleFileError, match="not a metastep schedule"):
        ms.load_schedule(tmp_path / "foreign.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    schedule = net()
    with torch.no_grad():
        schedule.output.bias.fill_(float("nan"))
    ms.save_schedule(schedule, tmp_path / "nan")
    with pytest.raises(ms.ScheduleFileError, match="not finite"):
        ms.load_schedule(tmp_path / "nan")


# ---- published .pth files


def published(network: ms.MLRSNet) -> dict[str, torch.Tensor]:
    """A network's weights under the published names."""
    parts = {
        "input_bottleneck": "fc_i2h.0",
        "input_gates": "fc_i2h.2",
        "hidden_bottleneck": "fc_h2h.0",
        "hidden_gates": "fc_h2h.2",
    }
    names = {}
    for name, weight in network.state_dict().items():
        if name.startswith("output."):
            names[name.replace("output", "layer3")] = weight
        else:
            _, layer, part, kind = name.split(".")
            prefix = "layer1" if layer == "0" else f"layer2.{int(layer) - 1}"
            names[f"{prefix}.{parts[part]}.{kind}"] = weight
    return names


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("old_format", [False, True])
def test_published_weights_are_read_in_every_wrapping(
    layers: int, nested: bool, old_format: bool, tmp_path: Path
) -> None:
    network = net(
        num_layers=layers,
        bottleneck=8,
        gate_layout="ifgo",
        scale=ms.ScaleRule(text=True),
        trained_for="sgd, sgd-momentum",
    )
    weights = published(network)
    content = {"state_dict": weights} if nested else weights
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=not old_format)
    loaded = ms.load_schedule(tmp_path / "net.pth")
    assert loaded.config() == network.config()  # a bottleneck of full width is the text variant
    assert outputs(loaded) == outputs(network)


def test_weights_written_on_a_cuda_device_are_read_without_one(tmp_path: Path) -> None:
    network = net(gate_layout="ifgo")
    torch.save(published(network), tmp_path / "cpu.pth")
    with zipfile.ZipFile(tmp_path / "cpu.pth") as old, zipfile.ZipFile(tmp_path / "cuda.pth", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3")
            new.writestr(entry, content)
    assert b"cuda:3" in (tmp_path / "cuda.pth").read_bytes()
    loaded = ms.load_schedule(tmp_path / "cuda.pth")
    assert outputs(loaded) == outputs(network)
    assert loaded.output.weight.device.type == "cpu"


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["torch", "torch-old", "pickle"])
def test_code_inside_a_file_is_refused_and_not_run(writer: str, tmp_path: Path) -> None:
    file, target = tmp_path / "trap.pth", tmp_path / "was_run"
    content = {"layer3.weight": Malicious(target)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ms.ScheduleFileError, match=r"trap\.pth"):
        ms.load_schedule(file)
    assert not target.exists()
    if writer == "pickle":
        pickle.loads(file.read_bytes())
        assert target.exists()  # the trap was one


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("layer3.bias"),
        lambda w: w.update({"layer4.weight": torch.ones(1)}),
        lambda w: w.update({"layer1.fc_h2h.0.weight": torch.ones(3)}),
        lambda w: w.update({"layer1.fc_i2h.0.weight": torch.ones(4, 2)}),
        lambda w: w.update({"epoch": 3}),
        lambda w: w.clear(),
    ],
)
def test_other_tensors_than_those_of_the_published_network_are_refused(change, tmp_path: Path) -> None:
    weights = published(net())
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ms.ScheduleFileError, match=r"other\.pth"):
        ms.load_schedule(tmp_path / "other.pth")


def test_a_gate_layout_for_a_file_that_says_it_itself_is_refused(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(small)
    with pytest.raises(ms.ScheduleFileError, match="gate_layout is stored in the file"):
        ms.load_schedule(tmp_path / "small", gate_layout="ifgo")
