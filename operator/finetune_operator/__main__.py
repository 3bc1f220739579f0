"""The operator's command line: `run` in a cluster, `render` without one, `crd` for the generated file."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_operator import __version__
from finetune_operator.api.crd import crd_text
from finetune_operator.api.job import FineTuneJob
from finetune_operator.build import build_all
from finetune_operator.build.manifest import manifests_text
from finetune_operator.errors import InvalidJob, InvalidSettings
from finetune_operator.plan import make_plan
from finetune_operator.settings import Settings

# What Kubernetes gives to a job when it is made; a rendered one was not.
PLACEHOLDER_UID = "00000000-0000-0000-0000-000000000000"
DEFAULT_TRAINER_IMAGE = f"finetune-trainer:{__version__}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="watch FineTuneJobs and carry them out; settings are FINETUNE_* variables")
    render_parser = verbs.add_parser("render", help="print the plan and every manifest of a job, without a cluster")
    render_parser.add_argument("file", metavar="FILE", help="a manifest with one FineTuneJob; - is standard input")
    verbs.add_parser("crd", help="print the CustomResourceDefinition")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.verb == "run":
            run()
        elif chosen.verb == "render":
            text = sys.stdin.read() if chosen.file == "-" else Path(chosen.file).read_text(encoding="utf-8")
            print(render(text, os.environ), end="")
        else:
            print(crd_text(), end="")
    except (InvalidJob, InvalidSettings) as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 1
    except UnicodeDecodeError:
        print(f"{chosen.file}: is no UTF-8 text", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """Run the operator until it is told to stop.

    Raises:
        InvalidSettings: an environment variable is missing or wrong.
    """
    from finetune_operator import handlers

    handlers.run()


def render(text: str, environment: Mapping[str, str]) -> str:
    """Return the plan of a job as YAML comments, and after it every manifest of its first attempt.

    Raises:
        InvalidJob: the text is not one usable FineTuneJob.
        InvalidSettings: an environment variable is wrong.
    """
    try:
        body: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidJob([f"is not one YAML document: {error}"]) from error
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        raise InvalidJob(["is no FineTuneJob: metadata is missing"])
    job = FineTuneJob.parse(body | {"metadata": {"uid": PLACEHOLDER_UID} | body["metadata"]})
    settings = Settings.from_environment({"FINETUNE_TRAINER_IMAGE": DEFAULT_TRAINER_IMAGE} | dict(environment))
    plan = make_plan(job, settings, claim_access_modes={})
    processes = f"{plan.num_nodes} nodes x {plan.num_processes_per_node} processes"
    comments = [f"FineTuneJob {plan.namespace}/{plan.name}: {processes}", *(f"- {reason}" for reason in plan.reasons)]
    return "".join(f"# {comment}\n" for comment in comments) + manifests_text(build_all(plan, attempt=1))


if __name__ == "__main__":
    sys.exit(main())
