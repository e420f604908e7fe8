"""A thousand damages of each kind of schedule file end in one line or in a right result, within bounded memory."""

import io
import json
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.faults.damage import STRANGE_JSON, damages, json_value, memory_bound

import metastep as ms
from metastep.schedules.files import _checksum, learned_on

COUNT = 1000
MEGABYTES = 400


def files(tmp_path: Path) -> dict[str, bytes]:
    """A good file of each form."""
    torch.manual_seed(0)
    small = {"hidden_size": 3, "bottleneck": 2}
    schedules = {
        "mlrsnet": ms.MLRSNet(**small, num_layers=2),
        "phased": ms.Phased([ms.MLRSNet(**small), ms.MLRSNet(**small), ms.FixedOutput(0.3)], total_steps=9),
        "staircase": ms.Staircase((1.0, 0.1), total_steps=8),
        "onecycle": ms.OneCycle(9, three_phase=True),
    }
    found = {}
    for name, schedule in schedules.items():
        ms.save_schedule(schedule, tmp_path / name, learned_on=["digits/mlp"])
        found[name] = (tmp_path / name).read_bytes()
    return found


def sealed(data: bytes, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> bytes:
    """The file with other metadata or tensors and a right checksum, as somebody who knows the format writes it."""
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    described = {**header["__metadata__"], **metadata}
    tensors = safetensors.torch.load(data) if tensors is None else tensors
    described["sha256"] = _checksum(tensors, described)
    return safetensors.torch.save(tensors, metadata=described)


def edited(data: bytes, draw: random.Random) -> bytes:
    """A value of the header or of the configuration is another, under a right checksum where there is one."""
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].decode()
    if draw.random() < 0.4:
        text = json_value(header, draw).encode(errors="replace")
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    metadata = json.loads(header)["__metadata__"]
    what = draw.choice(("config", "config", "config", "class", "learned_on"))
    changed = draw.choice(["Cosine", "Phased", "", "Schedule"]) if what == "class" else json_value(metadata[what], draw)
    return sealed(data, **{what: changed})


def retyped(data: bytes, draw: random.Random) -> bytes:
    """The tensors are of another dtype or shape, fewer or more, under a right checksum."""
    tensors = safetensors.torch.load(data)
    if not tensors:
        return edited(data, draw)
    name = draw.choice(sorted(tensors))
    dtypes = (torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.float64, torch.bfloat16)
    kind = draw.randrange(5)
    if kind == 0:
        tensors[name] = tensors[name].to(draw.choice(dtypes))
    elif kind == 1:
        dtype = draw.choice(dtypes)
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    elif kind == 2:
        tensors[name] = tensors[name].flatten()[: draw.randrange(3)].clone()
    elif kind == 3:
        del tensors[name]
    else:
        tensors[f"{name}{draw.choice('xy')}"] = torch.full((2,), draw.choice([0.0, float("nan"), float("inf")]))
    return sealed(data, tensors)


def ended_well(path: Path) -> bool:
    """Whether the file is refused, in one line that names it; otherwise it must set rates."""
    try:
        schedule = ms.load_schedule(path)
    except ms.ScheduleFileError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert path.name in str(error)  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        return True
    learned_on(path)
    if isinstance(schedule, ms.Phased) and schedule.boundaries is None:
        schedule = schedule.with_total_steps(len(schedule.schedules))
    schedule = schedule.with_total_steps(10)
    state = schedule.init_state()
    for loss in (2.0, 1.0):
        rate, state = schedule.query(loss, state)
        assert 0 <= rate < float("inf")
    return False


@pytest.mark.parametrize("edit", [edited, retyped])
def test_a_thousand_damaged_schedule_files_end_in_a_line_or_a_right_result(edit, tmp_path: Path) -> None:
    good = files(tmp_path)
    path, refused = tmp_path / "damaged", 0
    with memory_bound(MEGABYTES):
        for seed, data in enumerate(good.values()):
            for damaged, what in damages(data, COUNT // 2 // len(good), seed=seed, edit=edit):
                path.write_bytes(damaged)
                try:
                    refused += ended_well(path)
                except Exception as error:
                    raise AssertionError(what) from error
    assert refused > COUNT // 4


@pytest.fixture
def snapshot(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    """A published snapshot, in torch's present or former format."""
    torch.manual_seed(0)
    names = {"fc_i2h.0": (2, 1), "fc_i2h.2": (12, 2), "fc_h2h.0": (2, 3), "fc_h2h.2": (12, 2)}
    weights = {}
    for layer, inputs in (("layer1", 1), ("layer2.0", 3)):
        for name, (rows, columns) in names.items():
            shape = (rows, inputs) if name == "fc_i2h.0" else (rows, columns)
            weights |= {f"{layer}.{name}.weight": torch.randn(shape), f"{layer}.{name}.bias": torch.randn(rows)}
    weights |= {"layer3.weight": torch.randn(1, 3), "layer3.bias": torch.randn(1)}
    torch.save(weights, tmp_path / "good.pth", _use_new_zipfile_serialization=request.param == "zip")
    return (tmp_path / "good.pth").read_bytes()


def within(data: bytes, draw: random.Random) -> bytes:
    """A published snapshot whose pickle is damaged, in an archive that is whole; or names and numbers in it swapped."""
    swaps = ((b"layer1", b"layer9"), (b"layer2.0", b"layer2.7"), (b"FloatStorage", b"CharStorage\n"), (b"cpu", b"met"))

    def changed(content: bytes) -> bytes:
        if draw.random() < 0.3:
            return content.replace(*draw.choice(swaps))
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.choice((0, 1, 255, draw.randrange(256)))
        return bytes(damaged)

    if not data.startswith(b"PK"):
        return changed(data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, changed(content) if entry.filename.endswith("data.pkl") else content)
    return out.getvalue()


@pytest.mark.parametrize("snapshot", ["zip", "old"], indirect=True)
def test_a_thousand_damaged_snapshots_end_in_a_line_or_a_right_result(snapshot: bytes, tmp_path: Path) -> None:
    path, refused = tmp_path / "damaged.pth", 0
    with memory_bound(MEGABYTES):
        for damaged, what in damages(snapshot, COUNT // 2, seed=1, edit=within):
            path.write_bytes(damaged)
            try:
                refused += ended_well(path)
            except Exception as error:
                raise AssertionError(what) from error
    assert refused > COUNT // 4


# ---- files that ask for any memory or time, one by one


def refused_quickly(path: Path, says: str) -> None:
    start = time.process_time()
    with memory_bound(MEGABYTES), pytest.raises(ms.ScheduleFileError, match=says):
        ms.load_schedule(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 100_000}, "hidden_size=100000 does not fit"),
        ({"num_layers": 10**9}, "num_layers=1000000000 does not fit"),
        ({"bottleneck": 2**62}, "bottleneck=.* does not fit"),
        ({"num_layers": True}, "num_layers must be an integer"),
        ({"scale": None}, "refuses the configuration"),
        ({"scale": {"mode": "freeze", "floor": 0.1, "text": "yes"}}, "text must be True or False"),
        ({"surprise": 1}, "refuses the configuration"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused(changes: dict, says: str, tmp_path: Path) -> None:
    data = files(tmp_path)["mlrsnet"]
    config = {**ms.load_schedule(tmp_path / "mlrsnet").config(), **changes}
    (tmp_path / "forged").write_bytes(sealed(data, config=json.dumps(config)))
    refused_quickly(tmp_path / "forged", says)


def test_many_members_that_share_the_tensors_are_refused(tmp_path: Path) -> None:
    data = files(tmp_path)["phased"]
    member = {"class": "MLRSNet", "config": ms.MLRSNet(hidden_size=3, bottleneck=2).config()}
    config = {"schedules": [member] * 20_000, "boundaries": None}
    (tmp_path / "forged").write_bytes(sealed(data, config=json.dumps(config)))
    refused_quickly(tmp_path / "forged", "does not fit")


@pytest.mark.parametrize("value", [*STRANGE_JSON, '{"total_steps": ' + "9" * 200 + "}"])
def test_a_configuration_of_any_json_is_refused(value: str, tmp_path: Path) -> None:
    data = files(tmp_path)["onecycle"]
    (tmp_path / "forged").write_bytes(sealed(data, config=value))
    if value == "{}":
        assert ms.load_schedule(tmp_path / "forged").total_steps is None  # what is not said has its default
    else:
        refused_quickly(tmp_path / "forged", "forged")


def test_a_header_without_metadata_is_refused_in_a_line(tmp_path: Path) -> None:
    for metadata in ("null", "5", '{"format": null}', '{"format": 5}', "[]"):
        text = f'{{"__metadata__": {metadata}}}'.encode()
        (tmp_path / "bare").write_bytes(struct.pack("<Q", len(text)) + text)
        refused_quickly(tmp_path / "bare", "bare")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e5m2, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    data = files(tmp_path)["mlrsnet"]
    tensors = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load(data).items()}
    (tmp_path / "other").write_bytes(sealed(data, tensors))
    refused_quickly(tmp_path / "other", "one dtype, float16, bfloat16, float32 or float64")


class Expanded:
    """Published names whose tensors claim more numbers than there are."""

    BIG = torch.zeros(1).expand(2**34)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"layer2.999999999.fc_i2h.0.weight": torch.zeros(1)}, "does not fit|not the tensors"),
        ({"layer2." + "9" * 400 + ".fc_i2h.0.weight": torch.zeros(1)}, "unexpected tensor"),
        ({"layer3.weight": Expanded.BIG}, "more numbers than the file holds"),
        ({"layer3.weight": torch.zeros(2).to_sparse()}, "run code|plain tensors"),
        ({"layer3.weight": torch.zeros(2, device="meta")}, "run code|plain tensors"),
        ({"layer3.weight": bytearray(5)}, "run code|expected named tensors"),
    ],
)
def test_a_snapshot_of_more_than_its_tensors_is_refused(weights: dict, says: str, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "forged.pth")
    if (tmp_path / "forged.pth").stat().st_size > 2**20:
        pytest.skip("this torch writes every number of an expanded tensor")
    refused_quickly(tmp_path / "forged.pth", says)


def test_an_archive_that_is_compressed_is_refused(tmp_path: Path) -> None:
    torch.save({"layer3.weight": torch.zeros(1000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            content = bytes(2**24) if "data/" in entry.filename else old.read(entry)
            new.writestr(entry.filename, content)
    refused_quickly(tmp_path / "bomb.pth", "not compressed")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**36)
    refused_quickly(tmp_path / "large", "bytes are no schedule")
