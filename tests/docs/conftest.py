"""The site, built once for all tests that look at it; its notebooks are run elsewhere."""

from pathlib import Path

import pytest
from docs_site.build import build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished site."""
    return build(tmp_path_factory.mktemp("documentation"), run_notebooks=False)
