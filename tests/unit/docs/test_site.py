"""The guide as HTML: every link leads somewhere, and a browser needs no network to show it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.docs.markdown import DOCS, ROOT

# What a browser fetches by itself; a link that a person follows may lead anywhere.
_ELSEWHERE = r"""["']?(?:https?:)?//"""
FETCHED = re.compile(
    rf"<(?:script|img|iframe|source)\b[^>]*\bsrc={_ELSEWHERE}|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon))"
    rf"[^>]*\bhref={_ELSEWHERE}"
)
STYLE_FETCHES = re.compile(r"""(?:@import\s+|url\()\s*["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with an error for every link that leads nowhere."""
    directory = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return directory


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f'href="{page.relative_to(DOCS).with_suffix(".html")}"' in start, page


def test_a_browser_fetches_nothing_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not STYLE_FETCHES.search(style.read_text(encoding="utf-8")), style
