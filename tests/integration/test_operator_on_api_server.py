"""The operator with the chart's own role on a real API server, with the real Job and garbage controllers.

There are no nodes: `Kubelet` writes the status of the pods that the Job controller makes.
"""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from finetune_trainer.contract.progress import FilesystemReport
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Refused
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import PREPARE, TRAIN, Kubelet, bring_to, telling, wait_until_failed
from tests.integration.operator_process import OperatorProcess, running_operator
from tests.unit.operator.kubernetes_objects import checkpoint, report

pytestmark = pytest.mark.apiserver

CHILDREN = ("jobs", "pods", "services", "configmaps")


@contextmanager
def _namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl.run("create", "namespace", name)
    yield kubectl.within(name)


@pytest.fixture
def namespace(installed: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace, with no operator but the one that a test starts."""
    with _namespace(installed) as kubectl:
        yield kubectl


STAGES = ("preparing", "starting", "waiting", "running", "suspended", "failed", "succeeded")


def bring_one_to_each_stage(kubectl: Kubectl) -> None:
    """Bring a job to each stage, by whose name it goes; side by side, for most of it is waiting."""
    with ThreadPoolExecutor(len(STAGES)) as threads:
        list(threads.map(lambda stage: bring_to(kubectl, stage, stage), STAGES))


def test_a_job_goes_from_apply_to_its_result_with_progress_read_from_rank_0(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    with telling(report(step=12, loss=2.34567, checkpoint=checkpoint(10))):
        bring_to(namespace, "whole", "running")
        running = namespace.wait_for_job("whole", lambda job: job.step == 12, timeout_seconds=20)
    assert running.status["progress"]["steps"] == "12/30"
    assert running.status["progress"]["lossText"] == "2.346"
    assert running.status["checkpoint"]["digest"] == f"sha256:{10:064x}"
    assert "12/30" in namespace.run("get", "ftj", "whole")
    kubelet = Kubelet(namespace, "whole")
    kubelet.finish_training(kubelet.pods(TRAIN, 2))
    done = namespace.wait_for_job("whole", lambda job: job.phase == "Succeeded", timeout_seconds=20)
    assert done.status["result"]["adapterDigest"] == "sha256:00ff"
    assert done.condition("Complete")["status"] == "True"
    reasons = [event.split(":")[0] for event in namespace.events("whole")]
    assert reasons == ["Accepted", "Prepared", "Running", "Succeeded"]


def test_a_disk_that_will_be_full_is_told_before_it_is_and_taken_back_when_there_is_room(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    def shared(free_bytes: int) -> tuple[FilesystemReport, ...]:
        return (FilesystemReport(name="shared", size_bytes=1 << 40, free_bytes=free_bytes),)

    def answers(status: str) -> bool:
        conditions = namespace.job("tight").status["conditions"]
        return ("StoragePressure", status) in [(found["type"], found["status"]) for found in conditions]

    with telling(report(step=12, filesystems=shared(free_bytes=1 << 20))):
        bring_to(namespace, "tight", "running")
        namespace.wait_until("the pressure is told", lambda: answers("True"), timeout_seconds=20)
        assert operator.samples()["finetune_operator_storage_pressure_jobs",] == 1
    with telling(report(step=13, filesystems=shared(free_bytes=1 << 39))):
        namespace.wait_until("it is taken back", lambda: answers("False"), timeout_seconds=20)
    assert operator.samples()["finetune_operator_storage_pressure_jobs",] == 0
    assert namespace.job("tight").phase == "Running"
    reasons = [event.split(":")[0] for event in namespace.events("tight")]
    assert reasons == ["Accepted", "Prepared", "Running", "StorageShort", "StorageSuffices"]


def test_a_failed_gang_is_taken_down_and_the_cause_is_told_once(operator: OperatorProcess, namespace: Kubectl) -> None:
    bring_to(namespace, "diverges", "failed")
    job = namespace.job("diverges")
    assert job.condition("Failed")["message"].startswith("loss is NaN at step 3. Seen: pod diverges-a1-worker-0-")
    namespace.wait_until(
        "the leader's Job is gone and the failed worker's is kept",
        lambda: [j["metadata"]["name"] for j in namespace.items("jobs", TRAIN)] == ["diverges-a1-worker"],
        timeout_seconds=20,
    )
    told = [event for event in namespace.events("diverges") if event.startswith("Diverged")]
    assert len(told) == 1
    assert told[0].startswith("Diverged: loss is NaN at step 3. Seen: pod diverges-a1-worker-0-")


def test_restarting_the_operator_in_every_stage_writes_nothing(
    plane: ControlPlane, namespace: Kubectl, tmp_path: Path
) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path) as first:
        first.wait_until_ready()
        bring_one_to_each_stage(namespace)
        sleep(2)
        before = {stage: namespace.job(stage).body for stage in STAGES}
    with running_operator(plane.operator_kubeconfig, tmp_path) as second:
        second.wait_until_ready()
        sleep(4)
        assert second.samples()["finetune_operator_reconcile_duration_seconds_count",] >= len(STAGES)
        assert second.num_writes() == 0, second.requests()
        assert second.samples()["finetune_operator_reconcile_errors_total",] == 0
    assert {stage: namespace.job(stage).body for stage in STAGES} == before


def test_while_nothing_changes_nothing_is_written(operator: OperatorProcess, namespace: Kubectl) -> None:
    bring_one_to_each_stage(namespace)
    sleep(2)
    before = operator.num_writes()
    sleep(5)
    assert operator.num_writes() == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_deleted_in_any_stage_leaves_only_its_claims_and_no_error(
    operator: OperatorProcess, namespace: Kubectl, stage: str
) -> None:
    errors = operator.samples()["finetune_operator_reconcile_errors_total",]
    bring_to(namespace, "gone", stage)
    namespace.run("delete", "finetunejob", "gone")
    namespace.wait_until(
        "children are gone",
        lambda: not any(namespace.items(kind, "finetune.dev/job=gone") for kind in CHILDREN),
        timeout_seconds=30,
    )
    claims = {claim["metadata"]["name"] for claim in namespace.items("persistentvolumeclaims")}
    assert claims == {"gone-shared", "gone-network"}
    assert operator.samples()["finetune_operator_reconcile_errors_total",] == errors


def test_a_job_deleted_and_applied_again_at_once_starts_afresh_on_the_claims_that_were_kept(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    bring_to(namespace, "again", "running")
    claim = namespace.get("pvc", "again-shared")["metadata"]["uid"]
    namespace.run("delete", "finetunejob", "again", "--wait=false")
    bring_to(namespace, "again", "running")
    assert namespace.get("pvc", "again-shared")["metadata"]["uid"] == claim


def test_two_jobs_of_one_name_in_two_namespaces_do_not_meet(operator: OperatorProcess, installed: Kubectl) -> None:
    with _namespace(installed) as first, _namespace(installed) as second:
        bring_to(first, "twin", "running")
        bring_to(second, "twin", "starting")
        assert (first.job("twin").phase, second.job("twin").phase) == ("Running", "Starting")


def test_a_name_of_63_characters_gets_its_gang(operator: OperatorProcess, namespace: Kubectl) -> None:
    bring_to(namespace, "n" * 63, "running")


def test_a_config_map_of_somebody_else_with_our_name_is_told_and_not_touched(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    namespace.run("create", "configmap", "foreign-config", "--from-literal=theirs=1")
    before = namespace.get("configmap", "foreign-config")
    namespace.apply(tiny_job("foreign"))
    told = namespace.wait_for_job("foreign", lambda job: job.status.get("reason") == "NameTaken", timeout_seconds=20)
    assert "ConfigMap foreign-config" in told.condition("Prepared")["message"]
    assert namespace.get("configmap", "foreign-config") == before
    assert any(event.startswith("NameTaken") for event in namespace.events("foreign"))
    namespace.run("delete", "configmap", "foreign-config")
    namespace.wait_until(
        "the job goes on by itself",
        lambda: len(namespace.items("configmaps", "finetune.dev/job=foreign")) == 1,
        timeout_seconds=20,
    )


def test_a_quota_that_refuses_the_claims_is_told_in_its_own_words(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    # NB: nobody counts for a quota here (its controller is not running), but a quota without room refuses at once.
    quota: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-claims"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}},
    }
    namespace.apply(quota)
    patch = '{"status": {"hard": {"persistentvolumeclaims": "0"}, "used": {"persistentvolumeclaims": "0"}}}'
    namespace.run("patch", "resourcequota", "no-claims", "--subresource=status", "--type=merge", "--patch", patch)
    namespace.apply(tiny_job("poor"))
    told = namespace.wait_for_job("poor", lambda job: job.status.get("reason") == "Refused", timeout_seconds=20)
    assert "exceeded quota: no-claims" in told.condition("Prepared")["message"]


def test_a_spec_that_only_the_operator_can_judge_is_refused_with_its_field_and_mended_by_applying_again(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "one-node"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    namespace.apply(claim, tiny_job("greedy", storage={"shared": {"claimName": "one-node"}}))
    refused = wait_until_failed(namespace, "greedy")
    accepted = refused.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.storage.shared.claimName" in accepted["message"]
    assert not any(namespace.items(kind, "finetune.dev/job=greedy") for kind in CHILDREN)
    namespace.apply(tiny_job("greedy", storage={"shared": {"claimName": "one-node"}}, compute__nodes=1))
    namespace.wait_until(
        "the mended job is accepted",
        lambda: namespace.job("greedy").condition("Accepted")["status"] == "True",
        timeout_seconds=20,
    )


def test_an_accepted_spec_cannot_be_changed(operator: OperatorProcess, namespace: Kubectl) -> None:
    bring_to(namespace, "fixed", "preparing")
    with pytest.raises(Refused, match=r"spec.*fixed|immutable|cannot be changed|may not be changed"):
        namespace.apply(tiny_job("fixed", training__seed=7))


def test_a_missing_storage_class_is_told_with_its_name_and_its_cure(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    namespace.apply(tiny_job("classless", storage__shared={"size": "1Gi", "storageClassName": "no-such"}))
    told = namespace.wait_for_job(
        "classless", lambda job: job.status.get("reason") == "StorageClassMissing", timeout_seconds=20
    )
    assert "'no-such'" in told.condition("Prepared")["message"]
    assert "kubectl get storageclass" in told.condition("Prepared")["message"]
    assert any(event.startswith("StorageClassMissing") for event in namespace.events("classless"))


def test_a_claim_that_is_missing_is_waited_for_and_named(operator: OperatorProcess, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("claimless", storage={"shared": {"claimName": "not-there"}}, compute__nodes=1))
    told = namespace.wait_for_job(
        "claimless", lambda job: job.status.get("reason") == "ClaimMissing", timeout_seconds=20
    )
    assert "not-there" in told.condition("Prepared")["message"]
    assert told.condition("Accepted")["status"] == "Unknown"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "not-there"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    namespace.apply(claim)
    Kubelet(namespace, "claimless").pods(PREPARE, 1)


def test_pods_that_the_namespace_refuses_are_told_in_the_api_servers_words(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods"},
        "spec": {"hard": {"pods": "0"}},
    }
    namespace.apply(quota)
    patch = '{"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}'
    namespace.run("patch", "resourcequota", "no-pods", "--subresource=status", "--type=merge", "--patch", patch)
    namespace.apply(tiny_job("podless"))
    told = namespace.wait_for_job("podless", lambda job: job.status.get("reason") == "PodsRefused", timeout_seconds=25)
    assert "exceeded quota: no-pods" in told.condition("Prepared")["message"]


def test_no_finalizer_and_no_annotation_is_put_on_a_job(operator: OperatorProcess, namespace: Kubectl) -> None:
    bring_to(namespace, "clean", "starting")
    metadata = namespace.job("clean").body["metadata"]
    assert "finalizers" not in metadata
    assert set(metadata["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}
