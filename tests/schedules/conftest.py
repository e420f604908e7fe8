import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the published snapshots and the outputs that they must give."""
    roots = [os.environ.get("METASTEP_DATA"), Path(__file__).parents[3] / "shared"]
    for root in (Path(root) for root in roots if root):
        for folder in (root / "reference" / "mlrsnet", root.parent / "reference" / "mlrsnet"):
            if (folder / "oracle.json").is_file():
                return folder
    pytest.skip("the published MLR-SNet snapshots (reference/mlrsnet) are in neither METASTEP_DATA nor ../shared")
