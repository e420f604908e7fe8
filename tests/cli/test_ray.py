"""Addresses at which there is no Ray cluster, as typed."""

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

EXPERIMENT = ("experiment", "field/small", "--tasks", "digits/mlp", "--engine", "ray")


@pytest.mark.parametrize(
    "address", ["auto", "nonsense", "127.0.0.1:notaport", "http://127.0.0.1:6379", "127.0.0.1:1", "ray://127.0.0.1:1"]
)
def test_an_address_without_a_cluster_is_one_line(metastep, address: str) -> None:
    result = metastep(*EXPERIMENT, "--address", address, "--out", "out")
    assert result.code == 2
    line = result.err.strip().splitlines()[-1]
    assert line.startswith(
        (f"error: no Ray cluster at '{address}' (", "error: --address must be that of a Ray cluster")
    )
    assert address in line
    assert "ray start --head" in line
    assert "Traceback" not in result.err
