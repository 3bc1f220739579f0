"""The API server with the generated CRD: it takes what the operator takes, and refuses what the operator refuses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.spec import FineTuneJobSpec
from tests.e2e.kubectl import Kubectl, Refused, fresh_namespace
from tests.factories import condition, manifest, merged
from tests.refused_manifests import REFUSED, REFUSED_NAMES

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
# Waits for this claim, so that an operator which sees the job makes nothing.
WAITING = {"storage": {"shared": {"claimName": "there-is-none", "size": None, "storageClassName": None}}}


@pytest.fixture(scope="module")
def api(operator: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace of a cluster that has the chart's CRD."""
    with fresh_namespace(operator) as kubectl:
        yield kubectl


def job(patch: dict[str, Any], name: str = "calls") -> dict[str, Any]:
    body = manifest(patch, name)
    return body | {"metadata": {"name": name}}


def try_out(api: Kubectl, body: dict[str, Any]) -> str:
    return api.run("apply", "--dry-run=server", "-f", "-", "--output", "json", stdin=yaml.safe_dump(body))


@pytest.mark.parametrize(("patch", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_manifest_is_refused_and_the_field_named(api: Kubectl, patch: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused) as refusal:
        try_out(api, job(patch))
    # kubectl says `spec.x: Invalid value: ...` and, for fields that do not exist, `unknown field "spec.x"`.
    assert re.search(re.escape(path) + r"(\[\d+\])?(:|\")", str(refusal.value)), str(refusal.value)


@pytest.mark.parametrize("name", REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
def test_a_name_that_its_objects_cannot_have_is_refused(api: Kubectl, name: str) -> None:
    with pytest.raises(Refused, match=r"metadata\.name: .*a name has at most 63 characters"):
        try_out(api, job({}, name))


def test_a_name_of_63_characters_is_taken(api: Kubectl) -> None:
    try_out(api, job({}, "a" * 63))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_taken(api: Kubectl, sample: Path) -> None:
    assert "(server dry run)" in api.run("apply", "--dry-run=server", "-f", str(sample))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_api_server_fills_in_the_defaults_of_the_models(api: Kubectl, sample: Path) -> None:
    body = yaml.safe_load(sample.read_text(encoding="utf-8"))
    if body["kind"] != "FineTuneJob":
        return
    filled_in = json.loads(try_out(api, body))["spec"]
    assert FineTuneJobSpec.model_validate(filled_in) == FineTuneJobSpec.model_validate(body["spec"])
    assert merged(written_out(body["spec"]), filled_in) == filled_in


def written_out(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec as the models write it, without what is empty."""
    written = FineTuneJobSpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: _without_empty(group) for name, group in written.items()}


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_empty(field) for name, field in value.items() if field not in ({}, [])}
    return [_without_empty(element) for element in value] if isinstance(value, list) else value


def test_an_unknown_field_is_warned_about_where_the_client_asks_for_no_more(api: Kubectl) -> None:
    body = yaml.safe_dump(job({"training": {"epoch": 3}}))
    with pytest.raises(Refused, match=r'unknown field "spec\.training\.epoch"'):
        api.run("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=body)
    # "warn" succeeds; "Warning: unknown field" goes to standard error.
    assert "created" in api.run("apply", "--dry-run=server", "--validate=warn", "-f", "-", stdin=body)


def test_a_spec_may_be_mended_until_the_job_is_accepted_and_not_after(api: Kubectl) -> None:
    api.apply(job(WAITING, "mended"))
    api.apply(job(merged(WAITING, {"lora": {"rank": 32}}), "mended"))
    accepted = condition("Accepted", observed_generation=2)
    patch = json.dumps({"status": {"conditions": [accepted]}})
    api.run("patch", "finetunejob", "mended", "--subresource=status", "--type=merge", "--patch", patch)
    with pytest.raises(Refused, match=r"spec: .*cannot be changed after the job was accepted"):
        api.apply(job(merged(WAITING, {"lora": {"rank": 8}}), "mended"))
    api.run("label", "finetunejob", "mended", "team=a")
    api.run("delete", "finetunejob", "mended")


def test_the_list_of_jobs_has_the_columns_of_the_design(api: Kubectl) -> None:
    api.apply(job(WAITING, "listed"))
    short = api.run("get", "ftj").splitlines()[0].split()
    wide = api.run("get", "finetunejobs", "--output", "wide").splitlines()[0].split()
    assert short == ["NAME", "PHASE", "STEP", "LOSS", "ETA", "RESTARTS", "AGE"]
    assert wide == [*short, "MODEL", "NODES", "TOKENS/S", "CHECKPOINT", "REASON"]
    api.run("delete", "finetunejob", "listed")


def test_every_field_is_explained(api: Kubectl) -> None:
    assert "Rank of the adapter matrices." in api.run("explain", "finetunejob.spec.lora.rank")
