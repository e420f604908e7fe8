"""Addresses at which there is no Ray cluster, as typed."""

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

EVOLVE = ("evolve", "sgd")


@pytest.mark.parametrize(
    "address", ["auto", "nonsense", "127.0.0.1:notaport", "http://127.0.0.1:6379", "127.0.0.1:1", "ray://127.0.0.1:1"]
)
def test_an_address_without_a_cluster_is_one_line(metastep, address: str) -> None:
    result = metastep(*EVOLVE, "--executor", "ray", "--address", address, "--out", "out")
    assert result.code == 2
    line = result.err.strip().splitlines()[-1]
    assert line.startswith((f"error: no Ray cluster at '{address}' (", "error: address must be that of a Ray cluster"))
    assert address in line
    assert "ray start --head" in line
    assert "Traceback" not in result.err


def test_a_comparison_does_not_wait_where_nobody_listens(metastep) -> None:
    result = metastep(
        "experiment", "paper/hierarchy", "--tasks", "mnist/mlp", "--engine", "ray", "--address", "127.0.0.1:1"
    )
    assert result.code == 2
    assert result.err.strip().splitlines()[-1].startswith("error: no Ray cluster at '127.0.0.1:1' (")
