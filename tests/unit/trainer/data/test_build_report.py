"""What the report says the data is like."""

from pathlib import Path

import pytest

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.spec import Training
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.render import Renderer
from tests.unit.trainer.data.building import build, calling, chat, source


def test_the_report_says_what_the_data_is_like(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("x" * number) for number in (1, 2, 3, 4, 90, 1)]
    report = build([source(tmp_path, rows)], renderer, tmp_path / "out")
    lengths = sorted(len(renderer.render(parse_row(row, DatasetFormat.OPENAI))[0].tokens) for row in rows)
    found = report.preflight
    assert (found.conversations, found.duplicate_rows) == (6, 1)
    assert (found.tokens_p50, found.tokens_p95, found.tokens_max) == (lengths[2], lengths[5], lengths[5])
    assert found.tokens_mean == pytest.approx(sum(lengths) / 6, abs=0.05)
    assert found.truncated_share == pytest.approx(1 / 6, abs=1e-4)
    assert found.packing_efficiency == pytest.approx(report.tokens / (64 * report.sequences), abs=1e-4)
    assert sum(one.conversations for one in report.lengths) == 6
    assert report.lengths[-1].first <= lengths[5] <= report.lengths[-1].last
    assert found.chat_template.startswith("tools in the Hermes notation, sha256:")


def test_the_report_counts_functions_and_shows_a_call_with_what_is_trained(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("x"), calling("add", {"a": 1}, 1), calling("add", {"a": 2}, 2)]
    report = build([source(tmp_path, rows)], renderer, tmp_path / "out", Training(max_sequence_length=2048))
    assert (report.preflight.tools, report.preflight.tool_calls) == (1, 2)
    assert [(one.name, one.conversations, one.calls) for one in report.functions] == [("add", 2, 2)]
    assert report.example_place == "rows.jsonl, row 2"
    trained = [segment.text for segment in report.example if segment.trained]
    assert trained == ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>']
    read_by_the_model = "".join(segment.text for segment in report.example)
    assert read_by_the_model.startswith("<|im_start|>system\nYou are a function calling AI model.")
