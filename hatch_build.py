"""What a package index shows: the addresses of the project, and the README with links that work anywhere.

Where the repository lies is said once: by the environment variable ``METASTEP_REPOSITORY``, which the release workflow
sets, or by ``repository`` in pyproject.toml. Without either the README stays as it is, and no address is named.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str, tag: str) -> str:
    """Return a document of the repository with its links and pictures as they are at a tag."""

    def absolute(link: re.Match[str]) -> str:
        picture, label, path = link.groups()
        return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return _LINK.sub(absolute, text).replace("<this repository>", repository)


class CustomMetadataHook(MetadataHookInterface):
    """Adds ``readme`` and ``urls`` to the metadata."""

    def update(self, metadata: dict) -> None:
        """Fill in the fields that pyproject.toml calls dynamic."""
        repository = (os.environ.get("METASTEP_REPOSITORY") or self.config["repository"]).rstrip("/")
        tag = f"v{metadata['version']}"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        if repository:
            text = with_absolute_links(text, repository, tag)
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/blob/{tag}/docs/index.md",
                "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
