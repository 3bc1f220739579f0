"""Datasets under the Hub's names and layouts that carry this project's own sample rows.

A job's YAML names the true dataset; where the Hub can be reached it gets that, and from the mirror these rows.
"""

from __future__ import annotations

import json
from pathlib import Path

from dev.hub import names

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "data"
HERMES_ROWS = SAMPLES / "function-calling-hermes.jsonl"
GLAIVE_ROWS = SAMPLES / "function-calling-glaive.jsonl"
OPENAI_ROWS = SAMPLES / "function-calling-openai.jsonl"

NOTICE = (
    "Stand-in: carries finetune-operator's own sample rows (manifests/samples/data), "
    "not the rows of the dataset of this name on the Hugging Face Hub."
)

_HERMES_README = f"""---
license: apache-2.0
task_categories: [text-generation]
language: [en]
configs:
- config_name: func_calling
  data_files:
  - split: train
    path: func-calling.json
  default: true
---
# A stand-in for {names.HERMES}

{NOTICE}
"""

_GLAIVE_README = f"""---
license: apache-2.0
task_categories: [text-generation]
language: [en]
---
# A stand-in for {names.GLAIVE}

{NOTICE}
"""


def write_hermes(folder: Path) -> None:
    """The layout of the Hub's dataset: a JSON array for each subset, and a README whose front matter maps them."""
    (folder / "README.md").write_text(_HERMES_README)
    _write_json_array(HERMES_ROWS, folder / "func-calling.json")


def write_glaive(folder: Path) -> None:
    """The layout of the Hub's dataset: one JSON array beside a README without subsets."""
    (folder / "README.md").write_text(_GLAIVE_README)
    _write_json_array(GLAIVE_ROWS, folder / "glaive-function-calling-v2.json")


def _write_json_array(rows: Path, target: Path) -> None:
    content = [json.loads(line) for line in rows.read_text().splitlines()]
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
