"""What the operator asks of the cluster and does to it, in the words of this project."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import aiohttp
from pydantic import ValidationError

from finetune_operator import names
from finetune_operator.connection import Connection
from finetune_operator.errors import ApiError, DefinitionMissing, ForeignObject
from finetune_operator.events import JobEvent
from finetune_operator.metrics import Metrics
from finetune_operator.names import Annotation
from finetune_operator.observe import belongs_to
from finetune_operator.progress import Heard
from finetune_operator.resources import BY_KIND, EVENTS, FINE_TUNE_JOB_STATUS, FINE_TUNE_JOBS, NODES, Resource
from finetune_operator.store import Body, JobKey
from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport

logger = logging.getLogger(__name__)

_ASK_TIMEOUT_SECONDS = 2.0
_MAX_REPORT_BYTES = 100_000
_LIST_PAGE = 500


class Page(NamedTuple):
    """Some of the objects on a list, and the version of the whole list, from which on a watch tells what changes."""

    objects: Sequence[Body]
    version: str


class Cluster:
    """The cluster that the operator works in."""

    def __init__(self, connection: Connection, metrics: Metrics) -> None:
        self._connection = connection
        self._metrics = metrics
        self._asker = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_TIMEOUT_SECONDS))

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()
        await self._asker.close()

    def list_pages(self, resource: Resource, namespace: str | None, label_selector: str = "") -> AsyncIterator[Page]:
        """Yield all objects of a kind in a namespace, or in all of them.

        They come in pages, because whole objects take many times the memory of what is kept of them.

        Raises:
            ApiError: the API server refused, or did not answer.
        """
        query = [("limit", str(_LIST_PAGE))] + ([("labelSelector", label_selector)] if label_selector else [])
        return self._pages(resource, namespace, query)

    async def watch(
        self, resource: Resource, namespace: str | None, label_selector: str, since: str
    ) -> AsyncIterator[tuple[str, Body]]:
        """Yield the type and the object of every event after a version, until the API server ends the watch.

        An event of type BOOKMARK tells a newer version and no change.

        Raises:
            ApiError: the API server refused, or stopped answering; with status 410 the version is too old for it.
        """
        query = [("labelSelector", label_selector), ("allowWatchBookmarks", "true"), ("resourceVersion", since)]
        async for event in self._connection.watch(resource, namespace, query):
            if event["type"] == "ERROR":
                status = event["object"]
                raise ApiError(f"watch {resource.rbac_name}: {status.get('message')}", status.get("code"))
            yield event["type"], event["object"]

    async def check_definition(self, namespace: str | None) -> None:
        """Do nothing if the cluster knows FineTuneJobs.

        Raises:
            DefinitionMissing: it does not.
            ApiError: the API server refused, or did not answer.
        """
        if not await self.serves(FINE_TUNE_JOBS, namespace):
            raise DefinitionMissing(
                f"The cluster does not know FineTuneJobs. Install the CustomResourceDefinition {names.CRD_NAME}: "
                "`kubectl apply -f crds/finetunejobs.yaml`, or the Helm chart with crds.enabled=true."
            )

    async def serves(self, resource: Resource, namespace: str | None) -> bool:
        """Return whether the cluster knows a kind.

        Raises:
            ApiError: the API server refused to tell, or did not answer.
        """
        try:
            await self._connection.request("list", resource, namespace, query=[("limit", "1")])
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def find(self, kind: str, key: JobKey, name: str) -> Body | None:
        """Return an object of a job's namespace, or None when it is not there."""
        try:
            return await self._connection.request("get", BY_KIND[kind], key.namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def node_labels(self, name: str) -> Mapping[str, str]:
        """Return the labels of a node; none when it is gone.

        Raises:
            ApiError: the API server refused, or did not answer.
        """
        try:
            node = await self._connection.request("get", NODES, None, name)
        except ApiError as error:
            if error.status == 404:
                return {}
            raise
        return dict(node["metadata"].get("labels") or {})

    async def apply(self, manifest: Mapping[str, Any], job_uid: str) -> Body:
        """Make an object what its manifest says, and return it.

        One that is not there is created, one that differs is changed by server-side apply, and one that carries the
        manifest's digest is left as it is.

        Raises:
            ForeignObject: an object of that name is there and does not belong to the job; it is not touched.
            ApiError: the API server refused, or did not answer.
        """
        metadata, resource = manifest["metadata"], BY_KIND[manifest["kind"]]
        namespace, name = metadata["namespace"], metadata["name"]
        try:
            # Mostly it is not there, and to create what is there fails: that saves looking before.
            query = [("fieldManager", names.FIELD_MANAGER)]
            return await self._connection.request("create", resource, namespace, query=query, body=manifest)
        except ApiError as error:
            if error.status != 409:
                raise
        found = await self.find(manifest["kind"], JobKey(namespace, name), name)
        if found is not None:
            if not belongs_to(found, job_uid):
                raise ForeignObject(manifest["kind"], name)
            digest = found["metadata"].get("annotations", {}).get(Annotation.MANIFEST_DIGEST)
            if digest == metadata["annotations"][Annotation.MANIFEST_DIGEST]:
                return found
            # The uid makes sure that what is changed is what was looked at.
            manifest = {**manifest, "metadata": {**metadata, "uid": found["metadata"]["uid"]}}
        return await self._apply(resource, namespace, name, manifest)

    async def write_status(self, key: JobKey, uid: str, status: Mapping[str, Any]) -> Body | None:
        """Write a job's status and return the job, or None when it was deleted meanwhile."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # With the uid, the status of a deleted job never reaches a new one of its name.
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": uid},
            "status": status,
        }
        try:
            return await self._apply(FINE_TUNE_JOB_STATUS, key.namespace, key.name, body)
        except ApiError as error:
            if error.status in {404, 409}:
                return None
            raise

    async def delete(self, kind: str, namespace: str, name: str, uid: str, *, by_force: bool = False) -> None:
        """Delete an object and what it owns, unless it is gone already or another one has its name.

        It stays until all that it owns is gone, so that a Job that is not there any more has no pods either.

        Args:
            kind: what it is.
            namespace: where it is.
            name: its name.
            uid: which of that name.
            by_force: do not wait for the kubelet of a pod to say that it has ended. NB: if its node lives and is only
                cut off, the pod runs on there: https://kubernetes.io/docs/tasks/run-application/force-delete-stateful-set-pod/
        """
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            # A pod owns nothing, and with the other policy the garbage collector would hold on to it for a while.
            "propagationPolicy": "Background" if by_force else "Foreground",
            "preconditions": {"uid": uid},
        }
        if by_force:
            body["gracePeriodSeconds"] = 0
        await self._delete(BY_KIND[kind], namespace, name, body)

    async def delete_job(self, job: Body) -> None:
        """Delete a FineTuneJob if it is as it was when it was looked at; its children follow by their references."""
        metadata = job["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            # Whoever has just given it more time, or has asked to keep it, has changed its version.
            "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        }
        await self._delete(FINE_TUNE_JOBS, metadata["namespace"], metadata["name"], body)

    async def warnings(self, namespace: str) -> Sequence[Body]:
        """Return the Events of type Warning of a namespace; what the scheduler warns of, each pod says itself."""
        selector = "type=Warning,reason!=FailedScheduling"
        pages = self._pages(EVENTS, namespace, [("fieldSelector", selector)])
        return [event async for page in pages for event in page.objects]

    async def post_event(self, job: Body, event: JobEvent, now: datetime) -> None:
        """Post an Event about a job."""
        metadata = job["metadata"]
        moment, microseconds = now.strftime("%Y-%m-%dT%H:%M:%SZ"), int(now.timestamp() * 1e6)
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            # As client-go names them: the time in hexadecimal, so that a list of them is in order.
            "metadata": {"name": f"{metadata['name']}.{microseconds:x}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type.value,
            "reason": event.reason,
            "message": event.note,
            "source": {"component": names.OPERATOR},
            "reportingComponent": names.OPERATOR,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        await self._connection.request("create", EVENTS, metadata["namespace"], body=body)
        self._metrics.events.labels(event.reason).inc()

    async def read_progress(self, pod_ip: str) -> Heard:
        """Ask rank 0 how far it is, over the pod network.

        What answers is the image that the user chose: it is not followed to another address and not read without end,
        and what is no report is an answer without one, as is every answer before the training has begun.
        """
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        url, text = f"http://{host}:{series.METRICS_PORT}{series.PROGRESS_PATH}", bytearray()
        try:
            async with self._asker.get(url, allow_redirects=False) as response:
                async for part in response.content.iter_any():
                    text += part
                    if len(text) > _MAX_REPORT_BYTES:
                        return Heard(answers=True)
                report = ProgressReport.model_validate_json(text) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Heard(answers=False)
        except ValidationError as error:
            logger.warning(
                "%s answers with what is no progress report (%d problems, the first: %s). The image does not hold a "
                "trainer of this operator's version; see spec.compute.image.",
                url,
                error.error_count(),
                error.errors(include_input=False, include_url=False)[0]["msg"],
            )
            return Heard(answers=True)
        return Heard(answers=True, report=report)

    async def _pages(
        self, resource: Resource, namespace: str | None, query: Sequence[tuple[str, str]]
    ) -> AsyncIterator[Page]:
        token = None
        while True:
            page = await self._connection.request(
                "list", resource, namespace, query=[*query, ("continue", token)] if token else query
            )
            # NB: the items of a list do not say what they are.
            kind = {"apiVersion": page["apiVersion"], "kind": resource.kind}
            metadata = page.get("metadata", {})
            yield Page([{**kind, **item} for item in page.get("items") or ()], metadata.get("resourceVersion", ""))
            token = metadata.get("continue")
            if not token:
                return

    async def _delete(self, resource: Resource, namespace: str, name: str, options: Mapping[str, Any]) -> None:
        try:
            await self._connection.request("delete", resource, namespace, name, body=options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    async def _apply(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Body:
        query = [("fieldManager", names.FIELD_MANAGER), ("force", "true")]
        return await self._connection.request(
            "patch", resource, namespace, name, query=query, body=body, content_type="application/apply-patch+yaml"
        )
