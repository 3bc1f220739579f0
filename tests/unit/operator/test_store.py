"""What the operator knows, and what it must not believe."""

from typing import Any

from finetune_operator.store import JobKey, ObjectKey, Store

CALLS = JobKey("team-a", "calls")


def _job(version: int = 1, uid: str = "uid-1", namespace: str = "team-a") -> dict[str, Any]:
    return {
        "kind": "FineTuneJob",
        "metadata": {"name": "calls", "namespace": namespace, "uid": uid, "resourceVersion": str(version)},
    }


def _pod(
    name: str, version: int = 1, uid: str | None = None, job: str | None = "calls", phase: str = "Pending"
) -> dict[str, Any]:
    labels = {} if job is None else {"finetune.dev/job": job}
    metadata = {"name": name, "namespace": "team-a", "uid": uid or name, "resourceVersion": str(version)}
    return {"kind": "Pod", "metadata": metadata | {"labels": labels}, "status": {"phase": phase}}


def test_a_child_is_found_under_the_job_that_its_label_names() -> None:
    store = Store()
    store.see(_job())
    assert store.see(_pod("p")) == CALLS
    assert [child["metadata"]["name"] for child in store.children(CALLS)] == ["p"]


def test_an_object_without_our_label_belongs_to_no_job() -> None:
    store = Store()
    assert store.see(_pod("p", job=None)) is None
    assert store.children(CALLS) == ()


def test_two_jobs_of_one_name_in_two_namespaces_are_two() -> None:
    store = Store()
    store.see(_job(uid="uid-1", namespace="team-a"))
    store.see(_job(uid="uid-2", namespace="team-b"))
    assert set(store.job_keys()) == {JobKey("team-a", "calls"), JobKey("team-b", "calls")}


def test_a_late_event_does_not_undo_what_was_written_since() -> None:
    store = Store()
    store.see(_job(version=10))
    store.see(_job(version=9))
    job = store.job(CALLS)
    assert job is not None
    assert job["metadata"]["resourceVersion"] == "10"


def test_versions_are_compared_as_numbers() -> None:
    store = Store()
    store.see(_job(version=9))
    store.see(_job(version=10))
    job = store.job(CALLS)
    assert job is not None
    assert job["metadata"]["resourceVersion"] == "10"


def test_a_new_job_of_the_same_name_replaces_the_old_one_whatever_its_version() -> None:
    store = Store()
    store.see(_job(version=10, uid="old"))
    store.see(_job(version=3, uid="new"))
    job = store.job(CALLS)
    assert job is not None
    assert job["metadata"]["uid"] == "new"


def test_the_deletion_of_an_old_object_does_not_forget_the_new_one_of_its_name() -> None:
    store = Store()
    store.see(_pod("p", uid="new"))
    store.forget(_pod("p", uid="old"))
    assert len(store.children(CALLS)) == 1
    store.forget(_pod("p", uid="new"))
    assert store.children(CALLS) == ()


def test_who_manages_which_field_is_not_kept() -> None:
    store = Store()
    body = _job()
    body["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.see(body)
    job = store.job(CALLS)
    assert job is not None
    assert "managedFields" not in job["metadata"]
    assert "managedFields" in body["metadata"]


def test_of_a_pod_its_node_and_what_it_asks_for_are_kept_and_no_other_part_of_its_spec() -> None:
    store = Store()
    containers = [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "8"}}}]
    store.see(_pod("p") | {"spec": {"nodeName": "n1", "containers": containers, "volumes": [{"name": "job"}]}})
    (pod,) = store.children(CALLS)
    assert pod["spec"] == {"nodeName": "n1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "8"}}}]}


def test_an_object_tells_something_new_only_if_it_differs_in_what_is_read() -> None:
    store, running = Store(), _pod("p", version=7) | {"status": {"phase": "Running"}}
    change = store.update(_pod("p", version=5))
    assert change is not None
    assert (change.key, change.before) == (CALLS, None)
    assert [store.update(_pod("p", version=version)) for version in (5, 4, 6)] == [None, None, None]
    change = store.update(running)
    assert change is not None
    assert change.before == _pod("p", version=6)
    assert store.update(_pod("p", version=6)) is None
    assert store.update(_pod("p", version=6, uid="another")) is not None


def test_the_newest_version_of_an_object_is_kept_even_when_it_is_no_news() -> None:
    # A job is deleted in the very version that is known of it.
    store = Store()
    store.update(_job(version=5))
    store.update(_job(version=6))
    job = store.job(CALLS)
    assert job is not None
    assert job["metadata"]["resourceVersion"] == "6"


def test_a_list_removes_what_is_gone_and_keeps_what_was_seen_since_it_was_asked_for() -> None:
    store = Store()
    store.see(_pod("gone"))
    store.see(_pod("there"))
    known_before = store.uids("Pod")
    store.see(_pod("made-while-listing"))
    assert store.see_listed([_pod("there"), _pod("missed")], known_before) == {CALLS}
    unlisted = known_before - {_pod("there")["metadata"]["uid"]}
    assert store.forget_unlisted("Pod", unlisted) == {CALLS}
    assert {child["metadata"]["name"] for child in store.children(CALLS)} == {"there", "made-while-listing", "missed"}


def test_a_list_that_is_no_news_changes_nothing() -> None:
    store = Store()
    store.see(_pod("there"))
    assert store.see_listed([_pod("there")], store.uids("Pod")) == frozenset()


def test_what_changed_while_nobody_listened_is_seen_on_the_list() -> None:
    store = Store()
    store.see(_pod("ended", phase="Running"))
    changed = store.see_listed([_pod("ended", version=5, phase="Succeeded")], store.uids("Pod"))
    assert changed == {CALLS}
    (pod,) = store.children(CALLS)
    assert pod["status"]["phase"] == "Succeeded"


def test_what_was_deleted_while_it_was_listed_does_not_come_back() -> None:
    store = Store()
    store.see(_pod("gone"))
    known_before = store.uids("Pod")
    store.forget(_pod("gone"))
    assert store.see_listed([_pod("gone")], known_before) == frozenset()
    assert store.children(CALLS) == ()


def test_what_changed_since_it_was_listed_stays_as_it_is_now() -> None:
    store = Store()
    store.see(_pod("ended", version=5, phase="Succeeded"))
    assert store.see_listed([_pod("ended", version=4, phase="Running")], store.uids("Pod")) == frozenset()
    (pod,) = store.children(CALLS)
    assert pod["status"]["phase"] == "Succeeded"


def test_a_claim_of_somebody_else_is_remembered_for_the_job_that_uses_it() -> None:
    store = Store()
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "team-a", "uid": "c"}}
    claim["metadata"]["resourceVersion"] = "1"  # type: ignore[index]
    store.see(claim, CALLS)
    assert store.find(CALLS, ObjectKey("PersistentVolumeClaim", "data")) is not None
    # It carries no label of ours, so no list of ours has it: that does not mean that it is gone.
    assert store.forget_unlisted("PersistentVolumeClaim", store.uids("PersistentVolumeClaim")) == frozenset()
    assert store.find(CALLS, ObjectKey("PersistentVolumeClaim", "data")) is not None
