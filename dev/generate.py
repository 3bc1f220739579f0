"""Writes every generated file of the repository, or says which of them are out of date.

    python -m dev.generate            writes
    python -m dev.generate --check    compares, and ends with 1 when a file differs

Generated are the CRD (from the pydantic models), its copy in the chart, the dashboards (from dev/dashboards), the plain
manifest and the plain alerts (from the chart), and the pages of docs/reference: FineTuneJob (from the CRD), chart
values, reasons, metrics (from the tables of both programs), commands, and kubectl finetune (from its commands).
"""

import argparse
import difflib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dev import reference
from dev.command_reference import command_reference
from dev.dashboards import DASHBOARDS, as_json
from dev.metrics_reference import metrics_page
from finetune_operator.quantity import QUANTITY_PATTERN

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "finetune-operator"
REFERENCE = ROOT / "docs" / "reference"
NAMESPACE = "finetune-system"
COMMANDS = (
    "python -m finetune_operator",
    "python -m finetune_operator run",
    "python -m finetune_operator render",
    "python -m finetune_operator crd",
    "python -m finetune_trainer",
    "python -m finetune_trainer test-functions",
    "python -m finetune_trainer benchmark",
    "python -m finetune_trainer bfcl",
    "python -m finetune_trainer prune",
    "python -m finetune_trainer adopt",
)


def main() -> int:
    """Write or compare every generated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--helm", type=Path, default=Path("helm"), help="the helm program")
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    outdated = 0
    for path, text in generated_files(arguments.helm):
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current == text:
            continue
        outdated += 1
        if arguments.check:
            sys.stdout.writelines(_difference(path, current, text))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if arguments.check and outdated:
        print(f"{outdated} generated files are out of date: run `make generate` and commit the result", file=sys.stderr)
        return 1
    return 0


def generated_files(helm: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of each generated file, each made of what the ones before it say."""
    crd = _output(sys.executable, "-m", "finetune_operator", "crd")
    yield ROOT / "crds" / "finetunejobs.yaml", crd
    yield from _chart_copies(crd)
    for name, dashboard in DASHBOARDS.items():
        yield CHART / "files" / "dashboards" / f"{name}.json", as_json(dashboard)
    yield ROOT / "manifests" / "install.yaml", _install_manifest(helm)
    yield ROOT / "manifests" / "prometheus-rules.yaml", _prometheus_rules(helm)
    yield REFERENCE / "finetunejob.md", crd_reference(yaml.safe_load(crd))
    yield REFERENCE / "values.md", reference.values_page((CHART / "values.yaml").read_text(encoding="utf-8"))
    yield REFERENCE / "reasons.md", reference.reasons_page()
    yield REFERENCE / "metrics.md", metrics_page()
    yield REFERENCE / "commands.md", reference.commands_page({command: _help(command) for command in COMMANDS})
    yield REFERENCE / "command-line.md", command_reference()


def _chart_copies(crd: str) -> Iterator[tuple[Path, str]]:
    yield CHART / "files" / "finetunejobs.yaml", crd


def _install_manifest(helm: Path) -> str:
    heading = (
        "# GENERATED from helm/finetune-operator by `make generate`: for clusters where helm is not used.\n"
        f"#   kubectl create namespace {NAMESPACE} && kubectl apply --server-side -f install.yaml\n"
    )
    return heading + _rendered(helm)


def _prometheus_rules(helm: Path) -> str:
    """Return the alerts of the chart's PrometheusRule as Prometheus reads them without the Prometheus operator."""
    heading = (
        "# GENERATED from helm/finetune-operator by `make generate`: alerts for a Prometheus without the Prometheus\n"
        "# operator, which names this file under rule_files (docs/operator/monitoring.md says with which labels).\n"
    )
    rendered = _rendered(helm, "--set", "prometheusRule.enabled=true", "--show-only", "templates/prometheusrule.yaml")
    spec = yaml.safe_load(rendered)["spec"]
    return heading + str(yaml.safe_dump({"groups": spec["groups"]}, width=120, sort_keys=False))


def _rendered(helm: Path, *options: str) -> str:
    # NB: helm built from its Go module takes 1.20 for the cluster's version, and the chart refuses that.
    return _output(
        *(str(helm), "template", "finetune-operator", str(CHART)),
        *("--namespace", NAMESPACE, "--include-crds", "--kube-version", "1.34"),
        *options,
    )


def crd_reference(crd: Mapping[str, Any]) -> str:
    """Return a Markdown page with every field of a CRD: path, type, default, bounds and description."""
    version = crd["spec"]["versions"][0]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    lines = [
        "# FineTuneJob",
        "",
        f"`apiVersion: {crd['spec']['group']}/{version['name']}`, `kind: {crd['spec']['names']['kind']}`. Generated "
        "from the models in `finetune_operator.api` and `finetune_trainer.contract`; `kubectl explain "
        "finetunejob.spec` says the same. A field with `*` must be set where the group that it is in is set.",
    ]
    for part in ("spec", "status"):
        lines += ["", f"## {part}", "", "| field | type | default | what it is |", "|---|---|---|---|"]
        lines += [_reference_row(path, schema) for path, schema in walk_fields(properties[part], part)]
    return "\n".join(lines) + "\n"


def walk_fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted path and the schema of every field below `schema`, parents first."""
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        field_path = f"{path}.{name}"
        yield field_path + (" *" if name in required else ""), field
        if field.get("type") == "array":
            yield from walk_fields(field["items"], f"{field_path}[]")
        else:
            yield from walk_fields(field, field_path)


def _reference_row(path: str, schema: Mapping[str, Any]) -> str:
    default = (
        f"`{yaml.safe_dump(schema['default'], default_flow_style=True).splitlines()[0]}`" if "default" in schema else ""
    )
    if schema.get("type") == "object":
        default = ""
    text = " ".join(schema.get("description", "").split()).replace("|", "\\|")
    return f"| `{path}` | {_type_of(schema)} | {default} | {text} |"


def _type_of(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema['items'])}"
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity" if schema.get("pattern") == QUANTITY_PATTERN else "amount"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"map of {_type_of(schema['additionalProperties'])}"
    bounds = [
        f"{sign}{'' if schema.get(exclusive) else '='} {schema[bound]:,.15g}"
        for bound, exclusive, sign in (("minimum", "exclusiveMinimum", ">"), ("maximum", "exclusiveMaximum", "<"))
        if bound in schema
    ]
    return " ".join([str(schema["type"]), ", ".join(bounds)]).strip()


def _output(*command: str) -> str:
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    return finished.stdout


def _help(command: str) -> str:
    _, *arguments = command.split()
    # argparse breaks lines by the terminal's width.
    return _output("env", "COLUMNS=100", sys.executable, *arguments, "--help")


def _difference(path: Path, current: str, text: str) -> Iterator[str]:
    name = str(path.relative_to(ROOT))
    return difflib.unified_diff(
        current.splitlines(keepends=True),
        text.splitlines(keepends=True),
        f"{name} (committed)",
        f"{name} (generated)",
        n=1,
    )


if __name__ == "__main__":
    sys.exit(main())
