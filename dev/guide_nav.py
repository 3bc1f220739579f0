"""A hook of mkdocs: pages that mkdocs.yml does not name are put into the navigation, so that none is lost.

Design notes come every day; a list of them by hand would be out of date, and in everybody's way.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECTIONS = {"user": "For engineers", "operator": "For platform engineers", "reference": "Reference"}
_DESIGN = "design"


def on_config(config: Any) -> Any:
    """Add the pages that are not named."""
    docs = Path(config.docs_dir)
    named = set(_pages(config.nav))
    for folder, section in _SECTIONS.items():
        (pages,) = (entry[section] for entry in config.nav if isinstance(entry, dict) and section in entry)
        pages.extend(name for name in _files(docs, folder) if name not in named)
    config.nav.append({"Design": [{_title(docs / name): name} for name in _files(docs, _DESIGN)]})
    return config


def _files(docs: Path, folder: str) -> list[str]:
    return [str(path.relative_to(docs)) for path in sorted((docs / folder).glob("*.md"))]


def _pages(nav: Any) -> Iterator[str]:
    """Yield the files that a navigation names, however deep."""
    match nav:
        case str():
            yield nav
        case dict():
            for inner in nav.values():
                yield from _pages(inner)
        case list():
            for inner in nav:
                yield from _pages(inner)


def _title(path: Path) -> str:
    """Return a design note's heading after its date."""
    heading = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    date = path.name[:10]
    words = heading.replace(f"{date}: ", "").replace(f" ({date})", "")
    return f"{date} {words[:1].upper()}{words[1:]}"
