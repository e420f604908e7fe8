"""Reads the finished site: every link arrives, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

#: Elements that fetch what their attribute names as soon as the page is shown.
_LOADS = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src",
    "object": "data", "use": "href", "image": "href", "track": "src",
}  # fmt: skip
_LINKS_THAT_LOAD = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}
_IN_STYLES = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^'\");\s]+)")
#: Hosts that the theme's script would turn to for elements that this site does not use.
_HOSTS = re.compile(r"https://(?:unpkg\.com|cdn\.jsdelivr\.net|fonts\.g[a-z]+\.com)[^\"'`\s)]*")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and _LINKS_THAT_LOAD & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        if tag in _LOADS and _LOADS[tag] in values:
            self.loads.append(values[_LOADS[tag]])
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.loads += _IN_STYLES.findall(values.get("style", ""))


def _is_elsewhere(address: str) -> bool:
    return address.startswith(("http:", "https:", "//"))


def forget_hosts(site: Path) -> None:
    """Take the addresses of content networks out of the theme's scripts: what needs them is not used here."""
    for script in site.rglob("*.js"):
        script.write_text(_HOSTS.sub("about:blank", script.read_text("utf-8")), "utf-8")


def problems(site: Path) -> list[str]:
    """What is wrong with a site, a line each; pages below ``repository/`` are records, which link as they like."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        found += [f"{name}: loads {address}" for address in page.loads if _is_elsewhere(address)]
        if name == "404.html":  # is shown for any address: its links begin at the root
            continue
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: {address} names no place there")
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        found += [
            f"{path.relative_to(site)}: loads {address}" for address in _IN_STYLES.findall(path.read_text("utf-8"))
        ]
    for path in sorted(site.rglob("*.js")):
        found += [f"{path.relative_to(site)}: may load {host}" for host in _HOSTS.findall(path.read_text("utf-8"))]
    return found
