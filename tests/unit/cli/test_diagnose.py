"""Why a job does not run: each finding, and the command that mends it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_cli.capacity import need_of, weigh
from finetune_cli.diagnose import diagnose, has_problem
from finetune_cli.draw.doctor import draw_findings, finding_documents
from finetune_cli.findings import Finding, Level, Seen, Unseen
from finetune_cli.hub_access import Access
from finetune_cli.jobs import read_job
from finetune_cli.pods import see_pods
from finetune_operator.api.job import FineTuneJob
from finetune_operator.plan import make_plan
from tests.factories import SETTINGS, condition, manifest
from tests.unit.cli.views import CREATED, NOW, node, pod_on, train_pod
from tests.unit.operator.kubernetes_objects import claim, warning

OPERATOR = {
    "metadata": {"name": "finetune-operator", "namespace": "finetune-system"},
    "status": {"readyReplicas": 1},
}
PENDING = {
    "phase": "Pending",
    "reason": "Unschedulable",
    "observedGeneration": 1,
    "conditions": [condition("Running", "False", "Unschedulable", "No node of the cluster can take pod x now.")],
}


def seen(spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **changes: Any) -> Seen:
    """A job that waits on a cluster with everything that it needs, but for what a test changes."""
    body = manifest(spec, creationTimestamp=CREATED) | {"status": PENDING if status is None else status}
    typed = FineTuneJob.parse(body)
    nodes = changes.pop("nodes", [node("a"), node("b")])
    pods_of_others = changes.pop("others", [])
    need = need_of(typed.spec.compute, "nvidia.com/gpu")
    whole = Seen(
        body=body,
        job=read_job(body),
        typed=typed,
        plan=make_plan(typed, SETTINGS, {}),
        operators=[OPERATOR],
        pods=[],
        warnings=[],
        claims=[claim("calls-shared")],
        storage_classes=[{"metadata": {"name": "shared-fs"}}],
        secret_keys=None,
        quotas=[],
        capacity=weigh(need, typed.spec.compute.nodes, nodes, pods_of_others, "nvidia.com/gpu"),
        hub={},
    )
    return replace(whole, **changes)


def findings(subject: str, looked: Seen) -> list[Finding]:
    return [finding for finding in diagnose(looked, NOW) if finding.subject == subject]


def only(subject: str, looked: Seen) -> Finding:
    (finding,) = findings(subject, looked)
    return finding


def test_a_job_on_a_cluster_that_has_all_it_needs_has_nothing_to_mend() -> None:
    assert not has_problem(diagnose(seen(), NOW))


def test_what_the_job_says_itself_comes_first() -> None:
    first = diagnose(seen(), NOW)[0]
    assert (first.level, first.subject) == (Level.WAIT, "job")
    assert first.words == "Pending: No node of the cluster can take pod x now."


def test_a_suspended_job_is_resumed() -> None:
    finding = only("job", seen({"suspend": True}, {"phase": "Suspended", "observedGeneration": 1}))
    assert (finding.level, finding.command) == (Level.PROBLEM, "kubectl finetune resume calls -n team-a")


def test_a_failed_job_with_a_checkpoint_is_retried_unless_it_would_fail_again() -> None:
    accepted = [condition("Accepted")]
    failed = {"phase": "Failed", "reason": "NodeLost", "conditions": accepted, "checkpoint": {"step": 5}}
    assert only("job", seen(status=failed)).command == "kubectl finetune retry calls -n team-a"
    diverged = failed | {"reason": "Diverged"}
    assert only("job", seen(status=diverged)).command == "kubectl finetune logs calls -n team-a"


def test_a_job_that_nobody_has_looked_at_wants_an_operator() -> None:
    finding = findings("operator", seen(status={}, operators=[]))[0]
    assert finding.level is Level.PROBLEM
    assert finding.words.startswith("nobody has looked at this job in 14m00s")


def test_a_job_that_was_made_just_now_is_not_complained_about() -> None:
    looked = seen(status={})
    young = {"creationTimestamp": (NOW - timedelta(seconds=5)).isoformat()}
    body = looked.body | {"metadata": looked.body["metadata"] | young}
    assert not has_problem(diagnose(replace(looked, job=read_job(body)), NOW))


def test_an_operator_that_is_not_ready_has_logs() -> None:
    down = OPERATOR | {"status": {}}
    assert only("operator", seen(operators=[down])).command == (
        "kubectl -n finetune-system logs deployment/finetune-operator"
    )


@pytest.mark.parametrize("part", ["operators", "pods", "warnings", "claims", "secret_keys", "quotas", "capacity"])
def test_what_may_not_be_looked_at_is_never_called_well_and_never_a_problem(part: str) -> None:
    looked = seen({"secretName": "mine"}, **{part: Unseen("your role may not look at it")})
    told = diagnose(looked, NOW)
    assert not has_problem([finding for finding in told if finding.subject != "operator"])
    if part not in ("operators", "warnings"):
        assert any(finding.level is Level.UNKNOWN for finding in told)


def test_a_secret_that_does_not_exist_matters_where_a_token_is_needed() -> None:
    wandb = {"secretName": "mine", "tracking": {"wandb": {"project": "p"}}}
    finding = only("secret", seen(wandb, secret_keys=None))
    assert finding.level is Level.PROBLEM
    assert finding.command == "kubectl create secret generic mine -n team-a --from-env-file=.env"
    assert only("secret", seen({"secretName": "mine"}, secret_keys=None)).level is Level.WAIT


def test_a_secret_without_the_token_that_a_field_needs_names_both() -> None:
    spec = {"secretName": "mine", "export": {"pushTo": {"repository": "team/calls"}}}
    finding = only("secret", seen(spec, secret_keys=frozenset({"WANDB_API_KEY"})))
    assert finding.words == "Secret mine has no HF_TOKEN, which spec.export.pushTo needs"


def test_a_gated_model_wants_a_token() -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    gated = {model: Access.REFUSED}
    assert only("hub", seen(hub=gated)).level is Level.PROBLEM
    with_token = seen({"secretName": "mine"}, hub=gated, secret_keys=frozenset({"HF_TOKEN"}))
    assert only("hub", with_token).level is Level.WAIT
    assert only("hub", seen(hub={model: Access.OPEN})).level is Level.OK
    assert only("hub", seen(hub={model: Access.UNKNOWN})).level is Level.UNKNOWN


def test_what_prepare_said_of_the_hub_goes_before_what_is_seen_from_here() -> None:
    failed = PENDING | {"phase": "Failed", "reason": "ModelUnavailable"}
    assert only("hub", seen(status=failed, hub={"a/b": Access.OPEN})).level is Level.PROBLEM


def test_a_claim_of_a_class_that_is_not_there_lists_those_that_are() -> None:
    finding = only("storage", seen(claims=[claim("calls-shared", "Pending")]))
    assert (finding.level, finding.command) == (Level.PROBLEM, "kubectl get storageclass")
    assert "no-such" in finding.words


def test_a_claim_that_a_person_named_and_nobody_made_is_a_problem() -> None:
    spec = {"storage": {"shared": {"claimName": "gone", "size": None, "storageClassName": None}}}
    finding = only("storage", seen(spec, claims=[]))
    assert (finding.level, finding.words) == (Level.PROBLEM, "claim gone does not exist")


def test_a_claim_that_is_pending_has_the_words_of_its_provisioner() -> None:
    said = warning("ProvisioningFailed", "disk quota\nexceeded") | {
        "involvedObject": {"kind": "PersistentVolumeClaim", "name": "calls-shared"}
    }
    pending = claim("calls-shared", "Pending")
    pending["spec"]["storageClassName"] = "shared-fs"
    finding = only("storage", seen(claims=[pending], warnings=[said]))
    assert (finding.level, finding.words) == (
        Level.PROBLEM,
        "claim calls-shared is Pending: disk quota exceeded",
    )


@pytest.mark.parametrize(("hard", "level"), [("8", Level.WAIT), ("4", Level.PROBLEM), ("16", Level.OK)])
def test_a_quota_passes_when_others_are_done_and_never_when_it_is_too_small(hard: str, level: Level) -> None:
    quota = {
        "metadata": {"name": "team"},
        "status": {"hard": {"requests.nvidia.com/gpu": hard}, "used": {"requests.nvidia.com/gpu": "2"}},
    }
    finding = only("quota", seen({"compute": {"gpusPerNode": 8}}, quotas=[quota]))
    assert finding.level is level
    if level is not Level.OK:
        assert finding.words == f"team allows {hard} requests.nvidia.com/gpu, 2 are used, and the job asks for 8"


def test_pods_that_the_namespace_refuses_are_told_with_its_words() -> None:
    refused = warning("FailedCreate", 'pods "x" is forbidden: violates PodSecurity') | {
        "involvedObject": {"kind": "Job", "name": "calls-prepare"}
    }
    finding = only("pods", seen(warnings=[refused]))
    assert finding.level is Level.PROBLEM
    assert "violates PodSecurity" in finding.words


def test_a_taint_comes_with_the_toleration_to_write() -> None:
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    finding = only("nodes", seen(nodes=[node("a", taints=[taint])]))
    assert finding.level is Level.PROBLEM
    assert "tolerations: [{key: nvidia.com/gpu, value: present, effect: NoSchedule}]" in finding.command


def test_busy_gpus_are_waited_for() -> None:
    finding = only("nodes", seen({"compute": {"gpusPerNode": 8}}, nodes=[node("a")], others=[pod_on("a", gpus=8)]))
    assert finding.level is Level.WAIT
    assert "a has free 0 of the 8 nvidia.com/gpu" in finding.words


def test_gpus_that_no_node_has_are_a_problem() -> None:
    finding = only("nodes", seen({"compute": {"gpusPerNode": 16}}, nodes=[node("a")]))
    assert finding.level is Level.PROBLEM
    assert "a has 8 of the 16 nvidia.com/gpu" in finding.words


def test_an_image_that_cannot_be_pulled_is_told_with_the_nodes_words() -> None:
    body = train_pod(0)
    body["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ImagePullBackOff"}}
    pods = see_pods(seen().job, [body])
    said = warning("Failed", "pull access denied") | {
        "involvedObject": {"kind": "Pod", "name": body["metadata"]["name"]}
    }
    finding = only("image", seen(pods=pods, warnings=[said]))
    assert finding.level is Level.PROBLEM
    assert "pull access denied" in finding.words
    assert "imagePullSecrets" in finding.command


def test_the_picture_has_the_command_below_each_finding_and_a_sum_at_the_end() -> None:
    told = [
        Finding(Level.OK, "operator", "is ready"),
        Finding(Level.PROBLEM, "storage", "claim x does not exist", "kubectl get pvc"),
    ]
    assert draw_findings(told).plain.splitlines() == [
        "ok       operator  is ready",
        "PROBLEM  storage   claim x does not exist",
        "                   -> kubectl get pvc",
        "",
        "1 to mend.",
    ]
    assert finding_documents(told)[1] == {
        "level": "problem",
        "subject": "storage",
        "message": "claim x does not exist",
        "command": "kubectl get pvc",
    }
