"""The API server: the only file that talks to it, besides kopf's watches.

Every request goes through `_request`, which knows no resource and no verb that is not in `RESOURCES`; the chart's
ClusterRole is tested against that table. Requests that fail in passing (conflict, too many, server errors, no answer)
are tried again.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio import client, config
from pydantic import ValidationError

from finetune_operator import names
from finetune_operator.errors import ApiError, DefinitionMissing, ForeignObject
from finetune_operator.events import JobEvent
from finetune_operator.metrics import Metrics
from finetune_operator.names import Annotation
from finetune_operator.observe import belongs_to
from finetune_operator.progress import Heard
from finetune_operator.store import Body, JobKey, ObjectKey
from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

_TRANSIENT_CODES = frozenset({409, 429, 500, 502, 503, 504})
_RETRY_DELAYS_SECONDS = (0.1, 0.4, 1.6)
_LONGEST_RETRY_AFTER_SECONDS = 30.0
_REQUEST_TIMEOUT_SECONDS = 30.0
_SCRAPE_TIMEOUT_SECONDS = 2.0
_MAX_REPORT_BYTES = 100_000
_LIST_PAGE = 500


@dataclass(frozen=True)
class Resource:
    """A kind of object, and what the operator does to it."""

    kind: str
    group: str
    version: str
    plural: str
    verbs: frozenset[str]
    subresource: str = ""

    @property
    def rbac_name(self) -> str:
        """The resource as a ClusterRole names it."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the resource's path on the API server; no namespace means all of them."""
        parts = ["/api" if not self.group else f"/apis/{self.group}", self.version]
        parts += ["namespaces", namespace] if namespace is not None else []
        parts += [part for part in (self.plural, name, self.subresource) if part]
        return "/".join(parts)


# NB: server-side apply of an object that is not there needs `create` besides `patch`. `watch` is kopf's.
_READ = frozenset({"list", "watch"})
_MADE = _READ | {"get", "create", "patch"}
FINE_TUNE_JOBS = Resource(names.KIND, names.GROUP, names.VERSION, names.PLURAL, _READ | {"delete"})
FINE_TUNE_JOB_STATUS = Resource(
    names.KIND, names.GROUP, names.VERSION, names.PLURAL, frozenset({"patch"}), subresource="status"
)
JOBS = Resource("Job", "batch", "v1", "jobs", _MADE | {"delete"})
PODS = Resource("Pod", "", "v1", "pods", _READ | {"delete"})
CLAIMS = Resource("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", _MADE)
SERVICES = Resource("Service", "", "v1", "services", _MADE | {"delete"})
CONFIG_MAPS = Resource("ConfigMap", "", "v1", "configmaps", _MADE)
EVENTS = Resource("Event", "", "v1", "events", frozenset({"list", "create"}))

# NB: pods are listed after the Jobs that own them, so that a Job is never newer than its pods.
CHILDREN = (CLAIMS, CONFIG_MAPS, SERVICES, JOBS, PODS)
PYTORCH_JOBS = Resource(
    names.PYTORCH_JOB_KIND,
    names.PYTORCH_JOB_GROUP,
    names.PYTORCH_JOB_VERSION,
    names.PYTORCH_JOB_PLURAL,
    _MADE | {"delete"},
)
# Children of kinds that a cluster may lack.
OPTIONAL_CHILDREN = (PYTORCH_JOBS,)
RESOURCES = (FINE_TUNE_JOBS, FINE_TUNE_JOB_STATUS, *CHILDREN, *OPTIONAL_CHILDREN, EVENTS)
PERMISSIONS: Mapping[tuple[str, str], frozenset[str]] = {
    (resource.group, resource.rbac_name): resource.verbs for resource in RESOURCES
}
_BY_KIND = {resource.kind: resource for resource in (*CHILDREN, *OPTIONAL_CHILDREN)}
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}


class Cluster:
    """The cluster that the operator works in."""

    def __init__(self, api_client: client.ApiClient, metrics: Metrics) -> None:
        self._client = api_client
        self._client.user_agent = names.OPERATOR
        self._metrics = metrics
        self._scraper = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SCRAPE_TIMEOUT_SECONDS))

    @classmethod
    async def connect(cls, environment: Mapping[str, str], metrics: Metrics, num_connections: int) -> Self:
        """Connect with the kubeconfig that KUBECONFIG names, else with the pod's service account, else ~/.kube/config.

        Raises:
            ApiError: there are no credentials.
        """
        configuration = client.Configuration()
        configuration.connection_pool_maxsize = num_connections
        try:
            if SERVICE_ACCOUNT_TOKEN.exists() and not environment.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
            else:
                await config.load_kube_config(
                    config_file=environment.get("KUBECONFIG"), client_configuration=configuration
                )
        except config.ConfigException as error:
            raise ApiError(f"no way to reach a cluster: {error}. Set KUBECONFIG, or run in a pod.") from error
        return cls(client.ApiClient(configuration), metrics)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()
        await self._scraper.close()

    async def list_objects(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Body]:
        """Return all objects of a kind in a namespace, or in all of them.

        Raises:
            ApiError: the API server refused, or did not answer.
        """
        query = [("limit", str(_LIST_PAGE))] + ([("labelSelector", label_selector)] if label_selector else [])
        return await self._list_pages(resource, namespace, query)

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
            await self._request("list", resource, namespace, query=[("limit", "1")])
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def find(self, kind: str, key: JobKey, name: str) -> Body | None:
        """Return an object of a job's namespace, or None when it is not there."""
        try:
            return await self._request("get", _BY_KIND[kind], key.namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, manifest: Mapping[str, Any], job_uid: str) -> Body:
        """Make an object what its manifest says, by server-side apply, and return it.

        One that is there already and carries the manifest's digest is left as it is.

        Raises:
            ForeignObject: an object of that name is there and does not belong to the job; it is not touched.
            ApiError: the API server refused, or did not answer.
        """
        metadata, resource = manifest["metadata"], _BY_KIND[manifest["kind"]]
        key = JobKey(metadata["namespace"], metadata["name"])
        found = await self.find(manifest["kind"], key, metadata["name"])
        if found is not None:
            if not belongs_to(found, job_uid):
                raise ForeignObject(manifest["kind"], metadata["name"])
            digest = found["metadata"].get("annotations", {}).get(Annotation.MANIFEST_DIGEST)
            if digest == metadata["annotations"][Annotation.MANIFEST_DIGEST]:
                return found
            # The uid makes sure that what is changed is what was looked at.
            manifest = {**manifest, "metadata": {**metadata, "uid": found["metadata"]["uid"]}}
        return await self._apply(resource, key.namespace, metadata["name"], manifest)

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
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid},
        }
        if by_force:
            body["gracePeriodSeconds"] = 0
        await self._delete(_BY_KIND[kind], namespace, name, body)

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

    async def warnings(self, namespace: str, about: ObjectKey) -> Sequence[Body]:
        """Return the Events of type Warning about an object."""
        selector = f"involvedObject.kind={about.kind},involvedObject.name={about.name},type=Warning"
        return await self._list_pages(EVENTS, namespace, [("fieldSelector", selector)])

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
        await self._request("create", EVENTS, metadata["namespace"], body=body)
        self._metrics.events.labels(event.reason).inc()

    async def read_progress(self, pod_ip: str) -> Heard:
        """Ask rank 0 how far it is, over the pod network.

        What answers is the image that the user chose: it is not followed to another address and not read without end,
        and what is no report is an answer without one, as is every answer before the training has begun.
        """
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        url, text = f"http://{host}:{series.METRICS_PORT}{series.PROGRESS_PATH}", bytearray()
        try:
            async with self._scraper.get(url, allow_redirects=False) as response:
                async for part in response.content.iter_any():
                    text += part
                    if len(text) > _MAX_REPORT_BYTES:
                        return Heard(answers=True)
                report = ProgressReport.model_validate_json(text) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Heard(answers=False)
        except ValidationError:
            return Heard(answers=True)
        return Heard(answers=True, report=report)

    async def _list_pages(
        self, resource: Resource, namespace: str | None, query: Sequence[tuple[str, str]]
    ) -> list[Body]:
        items: list[Body] = []
        page: dict[str, Any] = {}
        while True:
            token = page.get("metadata", {}).get("continue")
            page = await self._request(
                "list", resource, namespace, query=[*query, ("continue", token)] if token else query
            )
            # NB: the items of a list do not say what they are.
            kind = {"apiVersion": page["apiVersion"], "kind": resource.kind}
            items += [{**kind, **item} for item in page.get("items") or ()]
            if not page.get("metadata", {}).get("continue"):
                return items

    async def _delete(self, resource: Resource, namespace: str, name: str, options: Mapping[str, Any]) -> None:
        try:
            await self._request("delete", resource, namespace, name, body=options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    async def _apply(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Body:
        query = [("fieldManager", names.FIELD_MANAGER), ("force", "true")]
        return await self._request(
            "patch", resource, namespace, name, query=query, body=body, content_type="application/apply-patch+yaml"
        )

    async def _request(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Make a request, again where that may help, and return the answer."""
        if verb not in resource.verbs:
            raise ValueError(f"{verb} {resource.rbac_name} is not in the table of what the operator does")
        what = " ".join(part for part in (verb, resource.rbac_name, name) if part)
        where = f"in namespace {namespace}" if namespace is not None else "in all namespaces"
        request = (_METHODS[verb], resource.path(namespace, name), list(query), body, content_type)
        for delay_seconds in (*_RETRY_DELAYS_SECONDS, None):
            code, answer, retry_after_seconds = await self._send(*request)
            self._metrics.api_requests.labels(verb, resource.rbac_name, str(code)).inc()
            if 200 <= code < 300:
                return answer
            if delay_seconds is None or code not in (_TRANSIENT_CODES | {0}):
                break
            await asyncio.sleep(max(delay_seconds, retry_after_seconds))
        raise ApiError(_explain(f"{what} {where}", code, str(answer.get("message", ""))), code or None)

    async def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> tuple[int, dict[str, Any], float]:
        """Send a request; return its status code, its answer, and for how long the server wants to be left alone.

        Code 0 means that no answer came; the answer's `message` then says why.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type}
        parameters = await self._client.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = await self._client.call_api(*parameters, _request_timeout=_REQUEST_TIMEOUT_SECONDS)
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, {"message": f"{type(error).__name__} {error}".strip()}, 0.0
        retry_after = response.headers.get("Retry-After", "")
        retry_after_seconds = min(float(retry_after), _LONGEST_RETRY_AFTER_SECONDS) if retry_after.isdigit() else 0.0
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {"message": data[:200].decode(errors="replace")}
        return response.status, answer if isinstance(answer, dict) else {}, retry_after_seconds


def _explain(what: str, code: int, message: str) -> str:
    if code == 0:
        return f"{what}: the API server did not answer: {message}"
    if code == 403 and " cannot " in message:
        return f"{what} is not permitted: {message}. Give the operator's ServiceAccount the chart's role."
    return f"{what}: the API server answered {code}: {message}"
