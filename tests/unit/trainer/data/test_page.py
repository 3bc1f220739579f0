"""The preflight report as a page: complete, readable without the net, and harmless whatever the rows say."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from finetune_trainer.contract.preflight import PreflightReport
from finetune_trainer.contract.termination import DatasetReport
from finetune_trainer.data.page import render_page
from finetune_trainer.data.report import Bin, DataReport, FunctionReport, Segment

REPORT = DataReport(
    datasets=(
        DatasetReport(
            name="team/calls", revision="abc", rows_read=1200, rows_kept=1100, rows_held_out=90,
            dropped={"malformed": 10},
        ),
    ),
    preflight=PreflightReport(
        conversations=1100, held_out_rows=90, duplicate_rows=7, tokens_mean=310.4, tokens_p50=300, tokens_p95=512,
        tokens_max=700, truncated_share=0.0123, packing_efficiency=0.984, tools=2, tool_calls=1234,
        chat_template="tools in its own notation, sha256:0123456789ab",
    ),
    tokens=341440, trained_tokens=34144, sequences=90, max_sequence_length=512, truncated_conversations=13,
    lengths=(Bin(first=1, last=350, conversations=800), Bin(first=351, last=700, conversations=300)),
    functions=(
        FunctionReport(name="add", conversations=900, calls=1234),
        FunctionReport(name="now", conversations=5, calls=0),
    ),
    example_place="rows.jsonl, row 3",
    example=(Segment(text="<|user|>Hi", trained=False), Segment(text="Hello <b>you</b>", trained=True)),
    bad_rows=("rows.jsonl, row 2: <script>alert(1)</script> is not JSON",),
    notes=("a note & more",),
)  # fmt: skip


class Page(HTMLParser):
    """Collects tags and their attributes, and checks that every element is closed."""

    VOID = frozenset({"meta", "br", "line", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(REPORT, "team-a/calls", "team/model@0123")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_needs_nothing_from_the_net_and_runs_no_script(html: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith(("on", "src", "href"))]
    assert "@import" not in html
    assert "url(" not in html


def test_every_element_of_the_page_is_closed(page: Page) -> None:
    assert page.open == []


@pytest.mark.parametrize(
    "words",
    [
        "team-a/calls", "team/model@0123", "1,100", "10.0 %", "98.4 %", "10 malformed", "mean 310",
        "median 300", "at most 512", "1.2 % are cut at 512", "1,234</b>calls of 2 functions", "rows.jsonl, row 3",
        "a note &amp; more", "tools in its own notation, sha256:0123456789ab",
    ],
)  # fmt: skip
def test_the_page_tells_what_was_found(words: str, html: str) -> None:
    assert words in re.sub(r"\s+", " ", html)


def test_what_rows_say_is_no_markup_and_what_is_trained_is_marked(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt; is not JSON" in html
    assert "&lt;|user|&gt;Hi<mark>Hello &lt;b&gt;you&lt;/b&gt;</mark>" in html


def test_a_bar_is_as_high_as_its_share_of_the_conversations(page: Page) -> None:
    bars: list[dict[str, Any]] = [attributes for tag, attributes in page.tags if tag == "rect" and "y" in attributes]
    assert [float(bar["height"]) for bar in bars] == [150.0, 56.2]
    assert [float(bar["y"]) + float(bar["height"]) for bar in bars] == pytest.approx([170.0, 170.0], abs=0.1)
