"""L2L and RNNProp: their networks against a reference, their files, and that the pretrained networks have learned."""

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.faults.damage import damages, json_value, memory_bound
from tests.oracles import learned_references
from torch import nn

from metastep.lab.baselines import L2L, RNNProp, learned
from metastep.lab.baselines.learned import L2LNetwork, RNNPropNetwork, load_update_network, save_update_network

KINDS = {
    "l2l": (L2L, L2LNetwork, learned_references.l2l),
    "rnnprop": (RNNProp, RNNPropNetwork, learned_references.rnnprop),
}
each = pytest.mark.parametrize("name", KINDS)


@each
def test_every_coordinate_steps_as_its_reference_does(name, monkeypatch):
    optimizer_of, network_of, reference = KINDS[name]
    monkeypatch.setattr(learned, "_CHUNK", 4)  # 6 coordinates are cut in two
    torch.manual_seed(0)
    network = network_of().double()
    weights = {key: value.detach() for key, value in network.state_dict().items()}
    p = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    scales = torch.tensor([[1e-9, 1e-3, 1.0], [30.0, 0.0, -0.1]], dtype=torch.float64)
    gradients = [scales * torch.randn(2, 3, dtype=torch.float64) for _ in range(5)]
    optimizer, positions = optimizer_of([p], network=network), []
    for gradient in gradients:
        p.grad = gradient
        optimizer.step()
        positions.append(p.detach().clone())
    for place in range(6):
        steps = torch.tensor(reference(weights, [float(g.reshape(-1)[place]) for g in gradients]), dtype=torch.float64)
        found = torch.stack([position.reshape(-1)[place] for position in positions])
        torch.testing.assert_close(found, steps.cumsum(0), rtol=1e-10, atol=1e-14)


def held_out(optimizer_of, steps=100):
    """Loss of a network and data of another kind than it learned on: two spirals, two hidden layers of GELU."""
    torch.manual_seed(5)
    t = torch.rand(200, 1) * 6
    arm = torch.cat([torch.cos(t), torch.sin(t)], dim=1) * t / 3
    x, y = torch.cat([arm, -arm]) + 0.05 * torch.randn(400, 2), torch.arange(400) // 200
    model = nn.Sequential(nn.Linear(2, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 2))
    optimizer = optimizer_of(model.parameters())
    for _ in range(steps):
        rows = torch.randint(400, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y).item()


@each
def test_what_comes_along_trains_a_network_that_it_never_saw_and_what_learned_nothing_does_not(name):
    optimizer_of, network_of, _ = KINDS[name]
    torch.manual_seed(0)
    untrained = network_of()
    start = held_out(torch.optim.SGD, steps=0)
    trained = held_out(optimizer_of)
    assert trained < 0.8 * start
    assert trained < 0.8 * held_out(lambda parameters: optimizer_of(parameters, network=untrained))


@each
def test_the_file_that_comes_along_is_small_and_read_without_unpickling(name):
    file = Path(learned.__file__).with_name(f"{name}.safetensors")
    assert file.stat().st_size < 40_000
    assert type(load_update_network(file)) is KINDS[name][1]


@each
def test_a_network_is_the_same_after_saving_and_loading(name, tmp_path):
    network = KINDS[name][1](hidden_size=6, num_layers=1)
    save_update_network(network, tmp_path / "x.safetensors")
    again = load_update_network(tmp_path / "x.safetensors")
    assert again.config() == network.config()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in network.state_dict().items())


def test_two_optimizers_do_not_share_a_network_and_nothing_learns():
    first, second = (L2L([nn.Parameter(torch.zeros(1))]) for _ in range(2))
    assert first._network is not second._network
    assert not any(weight.requires_grad for weight in first._network.parameters())


def test_bfloat16_parameters_keep_a_state_in_float32_through_a_checkpoint():
    p = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = RNNProp([p])
    for _ in range(3):
        p.grad = torch.randn(3).bfloat16()
        optimizer.step()
    resumed = RNNProp([nn.Parameter(p.detach().clone())])
    resumed.load_state_dict(optimizer.state_dict())
    (before,), (after,) = optimizer.state.values(), resumed.state.values()
    assert after["hidden"].dtype == torch.float32
    assert all(torch.equal(after[key], before[key]) for key in ("hidden", "exp_avg", "exp_avg_sq"))


def spoiled(tmp_path, **metadata):
    network = L2LNetwork()
    described = {"format": "metastep.update_network", "schema": "1", "class": "L2LNetwork", "config": "{}"}
    data = safetensors.torch.save(dict(network.state_dict()), metadata={**described, **metadata})
    (tmp_path / "x.safetensors").write_bytes(data)
    return tmp_path / "x.safetensors"


def test_bad_files_are_refused_with_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'missing.safetensors'"):
        load_update_network("missing.safetensors")
    (tmp_path / "pickle").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="broken or truncated"):
        load_update_network(tmp_path / "pickle")
    with pytest.raises(ValueError, match=r"not a learned optimizer of schema 1; .* 'schema': '2'"):
        load_update_network(spoiled(tmp_path, schema="2"))
    with pytest.raises(ValueError, match="hidden_size must be >= 1, got 0"):
        load_update_network(spoiled(tmp_path, config=json.dumps({"hidden_size": 0})))
    with pytest.raises(ValueError, match="size mismatch"):
        load_update_network(spoiled(tmp_path, config=json.dumps({"hidden_size": 5})))
    (tmp_path / "short").write_bytes(struct.pack("<Q", 1 << 40) + b"{")
    with pytest.raises(ValueError, match="broken or truncated"):
        load_update_network(tmp_path / "short")
    network = L2LNetwork()
    nn.init.constant_(network.output.bias, float("nan"))
    save_update_network(network, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        load_update_network(tmp_path / "nan.safetensors")
    with pytest.raises(TypeError, match="network must be one of L2LNetwork, RNNPropNetwork, got Linear"):
        save_update_network(nn.Linear(1, 1), tmp_path / "linear.safetensors")


def described_otherwise(data, draw):
    """The same weights with another description: JSON in which one value is swapped for a strange one."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    described = header["__metadata__"]
    if draw.random() < 0.5:
        described["config"] = json_value(described["config"], draw)
        text = json.dumps(header)
    else:
        text = json_value(json.dumps(header), draw)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data[8 + size :]


@each
def test_a_damaged_file_is_refused_in_one_line_or_read_whole(name, tmp_path):
    good = Path(learned.__file__).with_name(f"{name}.safetensors").read_bytes()
    file, said = tmp_path / "x.safetensors", {}
    shapes = {key: value.shape for key, value in KINDS[name][1]().state_dict().items()}
    with memory_bound(300):
        for data, what in damages(good, 300, seed=0, edit=described_otherwise):
            file.write_bytes(data)
            try:
                weights = load_update_network(file).state_dict()
            except ValueError as error:
                said[what] = str(error)
                continue
            assert {key: value.shape for key, value in weights.items()} == shapes, what
            assert all(value.isfinite().all() for value in weights.values()), what
    assert len(said) > 150
    assert all("\n" not in text and len(text) < 1000 for text in said.values())


def test_reading_a_network_draws_no_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_update_network(Path(learned.__file__).with_name("l2l.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_networks_are_refused_by_name():
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="network must be a L2LNetwork, got RNNPropNetwork"):
        L2L([p], network=RNNPropNetwork())
    with pytest.raises(ValueError, match="num_layers must be >= 1, got 0"):
        L2LNetwork(num_layers=0)
    with pytest.raises(ValueError, match="scale must be > 0 and finite"):
        L2LNetwork(scale=0.0)
    with pytest.raises(ValueError, match=r"betas must be in \[0, 1\)"):
        RNNPropNetwork(betas=(0.9, 1.0))
