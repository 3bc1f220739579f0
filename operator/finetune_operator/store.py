"""What was last seen of every FineTuneJob and of its children: the operator's knowledge, in memory.

Watches and the operator's own writes fill it. It holds objects as the API server sends them, without what nobody here
reads, and decides nothing; an older version of an object never replaces a newer one, so that a late watch event cannot
undo what the operator has just written.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from finetune_operator import names

Body = Mapping[str, Any]

# What nobody here reads is most of an object, and changes more often than what is read.
_UNREAD_METADATA = frozenset({"managedFields", "finalizers"})
_READ_SPEC: Mapping[str, frozenset[str]] = {
    "ConfigMap": frozenset(),
    "Service": frozenset(),
    "Job": frozenset({"completions", "suspend"}),
    "Pod": frozenset({"nodeName", "containers"}),
}
_READ_STATUS: Mapping[str, frozenset[str]] = {
    "Job": frozenset({"startTime", "conditions"}),
    "PyTorchJob": frozenset({"startTime", "conditions"}),
}


class JobKey(NamedTuple):
    """Which FineTuneJob."""

    namespace: str
    name: str


class ObjectKey(NamedTuple):
    """Which object of a job's namespace."""

    kind: str
    name: str


def job_key(body: Body) -> JobKey | None:
    """Return which job an object is, or belongs to by its label; None for an object that belongs to none."""
    metadata = body["metadata"]
    if body.get("kind") == names.KIND:
        return JobKey(metadata["namespace"], metadata["name"])
    job_name = metadata.get("labels", {}).get(names.Label.JOB)
    return None if job_name is None else JobKey(metadata["namespace"], job_name)


def object_key(body: Body) -> ObjectKey:
    """Return the key of an object within its namespace."""
    return ObjectKey(body["kind"], body["metadata"]["name"])


class Change(NamedTuple):
    """What was news of an object."""

    key: JobKey
    """The job that it is, or belongs to."""
    before: Body | None
    """What was known of it until then."""


class Store:
    """Objects by the job that they belong to; the FineTuneJob itself is one of them."""

    def __init__(self) -> None:
        self._objects: dict[JobKey, dict[ObjectKey, Body]] = {}

    def job(self, key: JobKey) -> Body | None:
        """Return the FineTuneJob, or None when there is none."""
        return self._objects.get(key, {}).get(ObjectKey(names.KIND, key.name))

    def children(self, key: JobKey) -> tuple[Body, ...]:
        """Return what belongs to a job by its label, and the claims that it uses."""
        return tuple(body for body in self._objects.get(key, {}).values() if body["kind"] != names.KIND)

    def find(self, key: JobKey, child: ObjectKey) -> Body | None:
        """Return one object of a job, or None when it was not seen."""
        return self._objects.get(key, {}).get(child)

    def job_keys(self) -> tuple[JobKey, ...]:
        """Return the keys of all FineTuneJobs."""
        return tuple(key for key in self._objects if self.job(key) is not None)

    def jobs(self) -> Iterator[Body]:
        """Iterate over all FineTuneJobs."""
        return (job for key in tuple(self._objects) if (job := self.job(key)) is not None)

    def see(self, body: Body, key: JobKey | None = None) -> JobKey | None:
        """Remember an object and return which job it belongs to.

        Args:
            body: the object.
            key: the job that it belongs to, where its label does not tell: a claim of somebody else's making.
        """
        key = key or job_key(body)
        if key is not None:
            self._keep(key, body)
        return key

    def update(self, body: Body) -> Change | None:
        """Remember an object, and return what was news of it.

        None when it tells nothing new, or belongs to no job: our writes come back, and others write what nobody here
        reads.
        """
        key = job_key(body)
        return None if key is None else self._keep(key, body)

    def forget(self, body: Body, key: JobKey | None = None) -> JobKey | None:
        """Forget a deleted object and return which job it belonged to; a newer one of its name is kept.

        Args:
            body: the object, as it was last seen.
            key: the job that it belonged to, where its label does not tell.
        """
        key = key or job_key(body)
        objects = self._objects.get(key, {}) if key is not None else {}
        known = objects.get(object_key(body))
        if key is not None and known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            self._drop(key, object_key(body))
        return key

    def uids(self, kind: str) -> frozenset[str]:
        """Return the uids of all objects of a kind."""
        return frozenset(
            body["metadata"]["uid"]
            for objects in self._objects.values()
            for child, body in objects.items()
            if child.kind == kind
        )

    def see_listed(self, listed: Iterable[Body], known_before: Collection[str]) -> frozenset[JobKey]:
        """Remember what is on a list, or on a page of it, and return the jobs for which something was news.

        What was known before the list was asked for and was forgotten since then stays forgotten, and what was seen
        since then is newer than the list and stays.

        Args:
            listed: the objects.
            known_before: the uids of what was known before the list was asked for.
        """
        changed = set()
        for body in listed:
            key, uid = job_key(body), body["metadata"]["uid"]
            if key is None:
                continue
            known = self.find(key, object_key(body))
            was_forgotten = uid in known_before and (known is None or known["metadata"]["uid"] != uid)
            if not was_forgotten and self.update(body) is not None:
                changed.add(key)
        return frozenset(changed)

    def forget_unlisted(self, kind: str, unlisted: Collection[str]) -> frozenset[JobKey]:
        """Forget objects of a kind that a list does not have any more, and return the jobs to which they belonged.

        Args:
            kind: what they are.
            unlisted: the uids of what was known before the list was asked for and is not on it.
        """
        changed = set()
        for key, objects in tuple(self._objects.items()):
            for child, body in tuple(objects.items()):
                if child.kind == kind and body["metadata"]["uid"] in unlisted and job_key(body) is not None:
                    self._drop(key, child)
                    changed.add(key)
        return frozenset(changed)

    def _keep(self, key: JobKey, body: Body) -> Change | None:
        objects, child = self._objects.setdefault(key, {}), object_key(body)
        known, kept = objects.get(child), _as_kept(body)
        if known is not None and _is_older(body, known):
            return None
        objects[child] = kept
        return None if known is not None and _is_alike(kept, known) else Change(key, known)

    def _drop(self, key: JobKey, child: ObjectKey) -> None:
        del self._objects[key][child]
        if not self._objects[key]:
            del self._objects[key]


def _is_older(body: Body, known: Body) -> bool:
    """Whether `body` is an earlier version of the same object.

    NB: resource versions of one kind can be compared as numbers (https://kep.k8s.io/5504); every API server that
    stores in etcd has always counted them so.
    """
    seen, last = body["metadata"], known["metadata"]
    return bool(seen["uid"] == last["uid"] and int(seen["resourceVersion"]) < int(last["resourceVersion"]))


def _is_alike(kept: Body, known: Body) -> bool:
    """Whether two versions of an object differ in nothing that is kept."""
    if any(kept.get(part) != known.get(part) for part in ("status", "spec")) or kept.keys() != known.keys():
        return False
    version = known["metadata"]["resourceVersion"]
    return bool({**kept["metadata"], "resourceVersion": version} == known["metadata"])


def _as_kept(body: Body) -> Body:
    """Return what is read of an object."""
    kind, kept = body.get("kind", ""), dict(body)
    kept["metadata"] = {name: value for name, value in body["metadata"].items() if name not in _UNREAD_METADATA}
    for part, read in (("spec", _READ_SPEC.get(kind)), ("status", _READ_STATUS.get(kind))):
        if read is not None and part in kept:
            kept[part] = {name: value for name, value in kept[part].items() if name in read}
    if kind == "Pod" and "containers" in kept.get("spec", {}):
        kept["spec"]["containers"] = [{"resources": found.get("resources")} for found in kept["spec"]["containers"]]
    kept.pop("data", None)  # of a ConfigMap: the job as its pods read it
    return kept
