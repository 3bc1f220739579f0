"""What the guide shows works: YAML is valid, field paths and commands exist, named files are there."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from finetune_operator.api.crd import crd
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.spec import FineTuneJobSpec
from tests.factories import manifest, merged
from tests.unit.docs.markdown import ROOT, Block, blocks, pages, prose

SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
VALUES_SCHEMA = json.loads((ROOT / "helm/finetune-operator/values.schema.json").read_text(encoding="utf-8"))
SPEC_FIELDS = frozenset(str(field.alias) for field in FineTuneJobSpec.model_fields.values())
VALUES = frozenset(VALUES_SCHEMA["properties"])
# The smallest job, which a fragment is a change of.
JOB = manifest({"evaluation": None})
FIELD_PATH = re.compile(r"`((?:spec|status)(?:\.[A-Za-z]+(?:\[[^\]`]*\])?)+)`")
# A field whose `spec.` is left out, or a value of the chart.
SHORT_PATH = re.compile(r"`([a-z][A-Za-z]*(?:\.[A-Za-z]+)+)`")
LOG_FILES = frozenset({"training.log"})
TEST_FILE = re.compile(r"\btests/[\w/]+\.py\b")
MAKE_TARGET = re.compile(r"\bmake ([a-z][a-z-]+)\b")


def documents(block: Block) -> list[Any]:
    return [document for document in yaml.safe_load_all(block.text) if document is not None]


def check(document: Any) -> None:
    """Raise unless a document is a job, a part of one, values of the chart, or of another program."""
    if isinstance(document, list):  # of containers, as a template wants them
        assert all("image" in entry for entry in document)
        return
    kind, names = document.get("kind"), set(document)
    if kind == "FineTuneJob":
        job = merged(manifest(), {"metadata": document["metadata"]}) | {"spec": document["spec"]}
        FineTuneJob.parse(job | {"apiVersion": document["apiVersion"]})
    elif kind is not None:
        assert {"apiVersion", "metadata"} <= names
    elif "scrape_configs" in names:  # of Prometheus
        assert all(entry["job_name"] for entry in document["scrape_configs"])
    elif names <= {"spec", "metadata"}:
        FineTuneJob.parse(merged(JOB, document))
    elif names <= SPEC_FIELDS:
        FineTuneJob.parse(merged(JOB, {"spec": document}))
    elif names <= VALUES:
        # A fragment: what a whole file must have besides is not asked for.
        jsonschema.Draft7Validator({**VALUES_SCHEMA, "required": []}).validate(document)
    else:
        raise AssertionError(f"neither fields of a FineTuneJob nor values of the chart: {sorted(names)}")


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_a_block_of_yaml_is_valid(block: Block) -> None:
    for document in documents(block):
        check(document)


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_a_block_of_json_is_json(block: Block) -> None:
    json.loads(block.text)


def field(path: str) -> Any:
    """Return the schema of a field by its path as kubectl has it, or raise KeyError with what is missing."""
    schema = SCHEMA
    for name in re.sub(r"\[[^\]]*\]", "", path).strip(".").split("."):
        while schema.get("type") == "array":
            schema = schema["items"]
        if isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        elif "properties" in schema:
            schema = schema["properties"][name]
        else:
            raise KeyError(name)
    return schema


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_field_that_a_page_names_exists(page: Path) -> None:
    for path in FIELD_PATH.findall(prose(page)):
        field(path)


def value(path: str) -> Any:
    """Return the schema of a value of the chart by its path, or raise KeyError with what is missing."""
    schema = VALUES_SCHEMA
    for name in path.split("."):
        schema = schema["properties"][name]
        if "$ref" in schema:
            schema = VALUES_SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        if "properties" not in schema:  # the end, or a map of names that Kubernetes knows, such as resources.limits
            break
    return schema


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_field_without_its_spec_and_a_value_of_the_chart_that_a_page_names_exist(page: Path) -> None:
    for path in set(SHORT_PATH.findall(prose(page))) - LOG_FILES:
        group = path.partition(".")[0]
        if group in SPEC_FIELDS:
            field(f"spec.{path}")
        elif group in VALUES:
            value(path)


def test_pages_name_fields_in_the_way_that_is_looked_for() -> None:
    named = {path for page in pages() for path in FIELD_PATH.findall(prose(page))}
    assert {"spec.suspend", "status.result"} <= named
    shortly = {path for page in pages() for path in SHORT_PATH.findall(prose(page))}
    assert {"checkpoint.everySteps", "prometheusRule.alerts.stalled.seconds"} <= shortly


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of the consoles that are shown, with its place; what is continued is put together."""
    for block in (*blocks("console"), *blocks("bash")):
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            if block.language == "bash" or line.startswith("$ "):
                yield block.place, shlex.split(line.removeprefix("$ "), comments=True)


KUBECTL = [(place, words) for place, words in commands() if words[:1] == ["kubectl"]]


@pytest.mark.parametrize(("place", "words"), KUBECTL, ids=[f"{place} {words[1]}" for place, words in KUBECTL])
def test_a_kubectl_command_names_fields_and_patches_that_exist(place: str, words: list[str]) -> None:
    for word in words:
        if "jsonpath=" in word and "finetunejob" in " ".join(words):
            for path in re.findall(r"\{(\.[^}]+)\}", word):
                if not path.startswith(".metadata"):
                    field(re.sub(r"\[\?\(.*?\)\]", "", path))
        if word.startswith("finetunejob."):
            field(word.removeprefix("finetunejob."))
    if "patch" in words and "finetunejob" in words:
        patch = next(word for word in words if word.startswith("{"))
        FineTuneJob.parse(merged(manifest(), json.loads(patch)))
    for flag, file in pairwise(words):
        if flag in ("-f", "--filename") and file.startswith("manifests/"):
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_of_this_repository_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in TEST_FILE.findall(text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([a-z][a-z-]+)(?: [a-z -]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in MAKE_TARGET.findall("".join(re.findall(r"`make [^`]*`|^\$ make .*$", text, re.MULTILINE))):
        assert target in targets, f"make {target}"
