"""MLR-SNet: the published outputs, the short path equal to the long one, no stale weights."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedules.loops import net

import metastep as ms
from metastep.schedules import compiled_query

fixed = settings(derandomize=True, deadline=None, max_examples=60)
LOSSES = [2.3, 1.9, 0.5, 0.0, -0.7, 4.0, 1e3]


@pytest.fixture(params=["compiled", "numpy"])
def short_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a query is short: with a compiler and without."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled_query, "library", lambda *source: None)
    elif compiled_query.library(compiled_query.SOURCE, *compiled_query.FLAGS) is None:
        pytest.skip("no C++ compiler")


def outputs(network: ms.MLRSNet, path: str, losses: list[float]) -> list[float]:
    state, alphas = network.init_state(), []
    for loss in losses:
        alpha, state = getattr(network, path)(loss, state)
        alphas.append(alpha if isinstance(alpha, float) else alpha.item())
    return alphas


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("path", ["forward", "query"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("case", range(4))
def test_the_published_snapshots_give_the_published_outputs(
    case: int, dtype: torch.dtype, tolerance: float, path: str, reference: Path
) -> None:
    expected = json.loads((reference / "oracle.json").read_text())["cases"][case]
    file = reference / f"mlr_snet_{expected['snapshot']}.pth"
    network = ms.load_schedule(file, gate_layout=expected["gate_layout"]).to(dtype)
    found = outputs(network, path, expected["loss"])
    assert found == pytest.approx(expected["alpha"], rel=0, abs=tolerance)


def test_a_published_snapshot_is_read_in_the_layout_of_its_authors_unless_told_otherwise(reference: Path) -> None:
    assert ms.load_schedule(reference / "mlr_snet_1.pth").gate_layout == "ifgo"


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("gate_layout", ["ifog_shifted", "ifgo"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-5)])
@pytest.mark.parametrize("sizes", [(1, 1, None), (2, 1, 5), (8, 2, None), (50, 1, None), (7, 3, 7)])
def test_the_short_path_is_the_long_one(
    sizes: tuple[int, int, int | None], dtype: torch.dtype, tolerance: float, gate_layout: str
) -> None:
    hidden, layers, bottleneck = sizes
    network = net(hidden_size=hidden, num_layers=layers, bottleneck=bottleneck, gate_layout=gate_layout).to(dtype)
    short, long = network.init_state(), network.init_state()
    for loss in LOSSES:
        alpha, short = network.query(loss, short)
        expected, long = network(loss, long)
        assert alpha == pytest.approx(expected.item(), rel=tolerance)
        torch.testing.assert_close(short, long.detach(), rtol=tolerance, atol=tolerance)
        assert short.dtype == dtype


def test_low_precision_weights_are_queried_by_the_long_path() -> None:
    network = net().to(torch.bfloat16)
    alpha, state = network.query(2.3, network.init_state())
    assert alpha == network(2.3, network.init_state())[0].item()
    assert state.dtype == torch.bfloat16


def rewrite_by_optimizer(make):
    def change(network: ms.MLRSNet) -> None:
        optimizer = make(network.parameters())
        network(2.3, network.init_state())[0].backward()
        optimizer.step()

    return change


def one_entry(network: ms.MLRSNet) -> None:
    with torch.no_grad():
        network.output.bias.add_(1.0)


CHANGES = {
    "sgd": rewrite_by_optimizer(lambda p: torch.optim.SGD(p, lr=1.0)),
    "adam": rewrite_by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam-foreach": rewrite_by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1, foreach=True)),
    "adam-fused": rewrite_by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    "load": lambda network: network.load_state_dict(net(seed=1).state_dict()),
    "load-assign": lambda network: network.load_state_dict(net(seed=1).state_dict(), assign=True),
    "half-and-back": lambda network: network.half().double(),
    "one-entry": one_entry,
}


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("change", CHANGES)
def test_a_query_after_a_change_of_the_weights_uses_the_new_ones(change: str) -> None:
    network = net()
    before, _ = network.query(2.3, network.init_state())
    CHANGES[change](network)
    after, _ = network.query(2.3, network.init_state())
    assert after != before
    assert after == pytest.approx(network(2.3, network.init_state())[0].item(), rel=1e-12)


def test_writing_to_data_needs_a_word() -> None:
    network = net()
    network.query(2.3, network.init_state())
    network.output.bias.data += 1
    network.weights_changed()
    alpha, _ = network.query(2.3, network.init_state())
    assert alpha == pytest.approx(network(2.3, network.init_state())[0].item(), rel=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_has_weights_of_its_own(copied) -> None:
    network = net()
    before = network.query(2.3, network.init_state())[0]
    copy_of_it = copied(network)
    one_entry(copy_of_it)
    assert network.query(2.3, network.init_state())[0] == before != copy_of_it.query(2.3, copy_of_it.init_state())[0]


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("path", ["forward", "query"])
def test_a_query_changes_neither_the_state_nor_what_it_gave_out_before(path: str) -> None:
    network, states = net(num_layers=2), []
    state = network.init_state()
    for loss in LOSSES:
        _, state = getattr(network, path)(loss, state)
        states.append((state, state.detach().clone()))
    for state, then in states:
        assert torch.equal(state, then)


@pytest.mark.usefixtures("short_path")
def test_a_state_from_elsewhere_is_read_where_it_is() -> None:
    network = net()
    _, state = network.query(2.3, network.init_state())
    again, _ = network.query(1.0, state.clone())
    state.mul_(0.5)  # the caller's value to change
    halved, _ = network.query(1.0, state)
    assert again != halved == pytest.approx(network(1.0, state)[0].item(), rel=1e-12)
    assert network.query(1.0, network(2.3, network.init_state())[1])[0] == pytest.approx(again)  # one with a graph


@pytest.mark.usefixtures("short_path")
def test_a_state_whose_data_were_replaced_is_read_or_refused() -> None:
    network = net(num_layers=2)
    _, state = network.query(2.3, network.init_state())
    state.data = state.data.float()
    assert network.query(1.0, state)[0] == pytest.approx(network(1.0, state)[0].item(), rel=1e-12)
    _, state = network.query(2.3, network.init_state())
    state.data = torch.ones(1)
    with pytest.raises(ValueError, match="state must have shape"):
        network.query(1.0, state)


@pytest.mark.usefixtures("short_path")
def test_weights_that_are_not_finite_give_no_number() -> None:
    network = net(num_layers=2)
    network.query(2.3, network.init_state())
    with torch.no_grad():
        network.cells[0].hidden_gates.bias[3] = torch.nan
    assert math.isnan(network.query(2.3, network.init_state())[0])


def test_the_loss_is_detached_and_the_weights_are_not() -> None:
    network = net()
    loss = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    alpha, _ = network(loss * 1, network.init_state())
    alpha.backward()
    assert loss.grad is None
    assert all(weight.grad is not None for weight in network.output.parameters())


@given(loss=st.floats(allow_nan=False), seed=st.integers(0, 5), path=st.sampled_from(["forward", "query"]))
@fixed
def test_the_output_is_strictly_between_zero_and_one_in_float32(loss: float, seed: int, path: str) -> None:
    network = net(seed).float()
    with torch.no_grad():
        network.output.weight.mul_(1e3)
        state = network.init_state()
        for _ in range(3):
            alpha, state = getattr(network, path)(loss, state)
            assert 0 < float(alpha) < 1
            assert state.isfinite().all()


@pytest.mark.parametrize("path", ["forward", "query"])
@pytest.mark.parametrize("shape", [(8,), (1, 2, 1), (1, 2, 9), (2, 2, 8)])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, ...], path: str) -> None:
    with pytest.raises(ValueError, match=r"state must have shape \(1, 2, 8\)"):
        getattr(net(), path)(1.0, torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 2.5}, "hidden_size"),
        ({"num_layers": -1}, "num_layers"),
        ({"bottleneck": 0}, "bottleneck"),
        ({"gate_layout": "iofg"}, "gate_layout"),
    ],
)
def test_a_bad_argument_is_named(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ms.MLRSNet(**options)


def test_the_published_size_has_11776_parameters() -> None:
    assert sum(weight.numel() for weight in ms.MLRSNet().parameters()) == 11776
