"""The chart, seen through manifests/install.yaml, which `make generate` writes with helm and `make lint` compares."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from finetune_operator import __version__, endpoints, resources
from finetune_operator.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "finetune-operator"

Manifest = dict[str, Any]


def read(path: Path) -> Manifest:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def objects() -> dict[str, Manifest]:
    """Every object of the manifest, by kind and name."""
    documents = yaml.safe_load_all((ROOT / "manifests" / "install.yaml").read_text(encoding="utf-8"))
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in documents if found}


@pytest.fixture
def pod(objects: Mapping[str, Manifest]) -> Manifest:
    spec = objects["Deployment/finetune-operator"]["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


class Recording(Mapping[str, str]):
    """An environment that remembers what was asked of it."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def test_the_operator_may_do_what_it_does_and_no_more(objects: Mapping[str, Manifest]) -> None:
    rules = objects["ClusterRole/finetune-operator"]["rules"]
    granted = {
        (group, resource): frozenset(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == dict(resources.PERMISSIONS)


def test_it_may_read_no_secret(objects: Mapping[str, Manifest]) -> None:
    resources = [name for rule in objects["ClusterRole/finetune-operator"]["rules"] for name in rule["resources"]]
    assert not {"secrets", "*"} & set(resources)


def test_the_chart_sets_every_setting_and_no_other(pod: Manifest) -> None:
    environment = Recording({entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]})
    settings = Settings.from_environment(environment)
    assert environment.asked == set(environment)
    assert settings == Settings(trainer_image=f"finetune-trainer:{__version__}")


def test_the_probes_ask_where_the_operator_answers(pod: Manifest) -> None:
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": Settings.metrics_port, "probes": Settings.probe_port}
    assert container["livenessProbe"]["httpGet"] == {"path": endpoints.LIVENESS_PATH, "port": "probes"}
    assert container["readinessProbe"]["httpGet"] == {"path": endpoints.READINESS_PATH, "port": "probes"}


def test_the_operators_pod_passes_the_restricted_pod_security_standard(pod: Manifest) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_one_operator_at_a_time(objects: Mapping[str, Manifest]) -> None:
    spec = objects["Deployment/finetune-operator"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_metrics_service_finds_the_operators_pod(objects: Mapping[str, Manifest]) -> None:
    selector = objects["Service/finetune-operator-metrics"]["spec"]["selector"]
    labels = objects["Deployment/finetune-operator"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_the_crd_stays_when_the_chart_goes(objects: Mapping[str, Manifest]) -> None:
    annotations = objects["CustomResourceDefinition/finetunejobs.finetune.dev"]["metadata"]["annotations"]
    assert annotations["helm.sh/resource-policy"] == "keep"


def test_everything_has_one_version() -> None:
    chart, values = read(CHART / "Chart.yaml"), read(CHART / "values.yaml")
    assert {chart["version"], chart["appVersion"]} == {__version__}
    assert values["image"] == f"finetune-operator:{__version__}"
    assert values["trainer"]["image"] == f"finetune-trainer:{__version__}"


def schema() -> Manifest:
    document = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_the_default_values_are_the_fields_of_their_schema() -> None:
    values = read(CHART / "values.yaml")
    jsonschema.Draft7Validator(schema()).validate(values)
    assert set(schema()["properties"]) - {"global"} == set(values)
    for group in ("trainer", "podMonitor", "serviceMonitor", "prometheusRule", "dashboards", "networkPolicy"):
        assert set(schema()["properties"][group]["properties"]) == set(values[group])
    alerts = schema()["properties"]["prometheusRule"]["properties"]["alerts"]["properties"]
    assert set(alerts) == set(values["prometheusRule"]["alerts"])


def open_objects(part: Any, path: str = "") -> Iterator[str]:
    """Yield where the schema takes an object of which it does not know every field."""
    if isinstance(part, dict):
        if part.get("type") == "object" and "additionalProperties" not in part:
            yield path
        for name, below in part.items():
            yield from open_objects(below, f"{path}/{name}")
    elif isinstance(part, list):
        for below in part:
            yield from open_objects(below, path)


def test_the_schema_knows_every_field_but_those_that_are_not_the_charts() -> None:
    assert list(open_objects(schema())) == ["/properties/global", "/definitions/ofKubernetes"]


WRONG_VALUES: dict[str, Manifest] = {
    "a misspelt value": {"watchNamespace": ["team-a"]},
    "namespaces as a text": {"watchNamespaces": "team-a"},
    "no trainer image": {"trainer": {"image": ""}},
    "a hub without a scheme": {"trainer": {"image": "x", "hubEndpoint": "hub.example"}},
    "a level that is none": {"log": {"level": "LOUD"}},
    "no workers": {"workers": 0},
    "prices without a currency": {"pricing": {"gpuHour": {"default": "2.95"}}},
    "a currency without prices": {"pricing": {"currency": "USD"}},
    "a price with its currency": {"pricing": {"currency": "USD", "gpuHour": {"default": "2.95 USD"}}},
    "a misspelt part of a value": {"podMonitor": {"enable": True}},
    "a misspelt alert": {"prometheusRule": {"alerts": {"jobsFailed": {"for": "1m"}}}},
    "an alert with the limit of another": {"prometheusRule": {"alerts": {"stalled": {"for": "1m", "ratio": 2}}}},
    "a duration without a unit": {"prometheusRule": {"alerts": {"jobFailed": {"for": "10"}}}},
    "a utilisation in percent": {"prometheusRule": {"alerts": {"gpuUnderused": {"for": "10m", "ratio": 85}}}},
    "a label that is no text": {"dashboards": {"labels": {"grafana_dashboard": 1}}},
    "a misspelt selector": {"networkPolicy": {"metricsFrom": [{"namespaceSelectors": {}}]}},
    "a misspelt resource": {"resources": {"limit": {"memory": "1Gi"}}},
    "a toleration of nothing known": {"tolerations": [{"keys": "gpu"}]},
}


@pytest.mark.parametrize("values", WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_a_wrong_value_is_refused_at_install(values: Manifest) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema()).validate(read(CHART / "values.yaml") | values)
