"""The pod template that all stages share. It passes the `restricted` Pod Security Standard.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator import names
from finetune_operator.build.manifest import Manifest
from finetune_operator.plan import NETWORK_VOLUME, SHARED_VOLUME, Disk, Plan
from finetune_trainer.contract import environment, paths
from finetune_trainer.contract.group import SpecModel

# A node that is not ready, and one that does not answer: https://kubernetes.io/docs/reference/labels-annotations-taints/
NODE_LOSS_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
USER_ID = 65532  # "nonroot" of the distroless images; the trainer image's user
SCRATCH = "/tmp"
DISK_FLAGS = {SHARED_VOLUME: "--shared", NETWORK_VOLUME: "--network"}


def pod_spec(
    plan: Plan,
    *,
    verb: str,
    mounts: Sequence[Disk],
    variables: Mapping[str, str],
    resources: Manifest,
    ports: Sequence[Manifest] = (),
    capabilities: Sequence[str] = (),
    container_name: str = names.CONTAINER,
) -> Manifest:
    """Return the spec of a pod that runs a verb of the trainer.

    Args:
        plan: the job's plan.
        verb: `prepare`, `train` or `evaluate`.
        mounts: disks that the pod mounts.
        variables: environment of this verb, besides what every container of the job gets.
        resources: requests and limits of the container.
        ports: ports that the container serves.
        capabilities: Linux capabilities that the container gets; with any, the pod is no longer `restricted`.
        container_name: name of the container.
    """
    container = _container(container_name, plan, verb, mounts) | {
        "securityContext": _container_security(capabilities),
        "env": _environment(plan, variables),
        "resources": resources,
    }
    if ports:
        container["ports"] = list(ports)
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": plan.job.spec.run_policy.termination_grace_period_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security_context(),
        "containers": [container],
        "volumes": _volumes(plan, mounts),
        **_placement(plan),
    }


def training_resources(plan: Plan) -> Manifest:
    """Return requests and limits of a training container: the user's, the GPUs, and the RDMA device."""
    devices = {} if plan.rdma_resource_name is None else {plan.rdma_resource_name: "1"}
    if plan.gpus_per_node:
        devices[plan.gpu_resource_name] = str(plan.gpus_per_node)
    return _resources(plan, devices)


def evaluating_resources(plan: Plan) -> Manifest:
    """Return requests and limits of the evaluating container: the user's, and one GPU where he trains on GPUs."""
    return _resources(plan, {plan.gpu_resource_name: "1"} if plan.gpus_per_node else {})


def _resources(plan: Plan, devices: Mapping[str, str]) -> Manifest:
    wanted = plan.job.spec.compute.resources
    resources: dict[str, Any] = {"requests": dict(wanted.requests), "limits": dict(wanted.limits) | dict(devices)}
    return {kind: amounts for kind, amounts in resources.items() if amounts}


def training_capabilities(plan: Plan) -> tuple[str, ...]:
    """Return the capabilities of a training container: none, but for RDMA, whose buffers are locked in memory.

    NB: a process that is not root has the capability only where its image gives it to the program; for all others the
    container runtime's limit of locked memory counts (docs/operator/install.md).
    """
    return () if plan.rdma_resource_name is None else ("IPC_LOCK",)


def _container(name: str, plan: Plan, verb: str, mounts: Sequence[Disk]) -> Manifest:
    return {
        "name": name,
        "image": plan.image,
        "imagePullPolicy": plan.image_pull_policy,
        "args": _arguments(verb, mounts),
        "volumeMounts": _volume_mounts(mounts),
        # A container that dies without a word leaves the end of its log instead.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _placement(plan: Plan) -> Manifest:
    """Where the pod may run. Preparing runs where training does: there the image and the filesystem are at hand."""
    compute = plan.job.spec.compute
    wanted: Manifest = {
        "imagePullSecrets": [{"name": name} for name in compute.image_pull_secrets],
        "nodeSelector": dict(compute.node_selector),
        "tolerations": [*(_wire(toleration) for toleration in compute.tolerations), *_node_loss_tolerations(plan)],
        "affinity": compute.affinity and _wire(compute.affinity),
        "priorityClassName": compute.priority_class_name,
    }
    return {name: value for name, value in wanted.items() if value}


def _node_loss_tolerations(plan: Plan) -> list[Manifest]:
    """Leave a lost node soon: without these, pods stay on it for five minutes.

    NB: of several tolerations of a taint the shortest time counts, so these also hold where the user tolerates every
    taint, as is usual on nodes with GPUs. Whoever names one of these taints decides himself.
    """
    named = {toleration.key for toleration in plan.job.spec.compute.tolerations}
    return [
        {
            "key": taint,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": plan.unreachable_node_seconds,
        }
        for taint in NODE_LOSS_TAINTS
        if taint not in named
    ]


def _wire(model: SpecModel) -> Manifest:
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _arguments(verb: str, mounts: Sequence[Disk]) -> list[str]:
    flags = [part for disk in mounts for part in (DISK_FLAGS[disk.volume], str(disk.mount_path))]
    return [verb, str(paths.JOB_FILE), *flags]


def _environment(plan: Plan, variables: Mapping[str, str]) -> list[Manifest]:
    # The root filesystem is read-only: whatever writes to a home directory or a cache writes to the scratch volume.
    # NB: the user has no entry in the image's passwd, and torch's compiler and wandb ask getpass.getuser() for a name.
    ours = {"HOME": SCRATCH, "USER": names.APP_NAME}
    if plan.hub_endpoint is not None:
        ours[environment.HUGGING_FACE_ENDPOINT] = plan.hub_endpoint
    users = {variable.name: variable.value for variable in plan.job.spec.compute.env}
    values = {**ours, **users, **variables}
    entries: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    secret_name = plan.job.spec.secret_name
    if secret_name is not None:
        entries += [_from_secret(secret_name, key) for key in environment.SECRET_NAMES]
    return sorted(entries, key=lambda entry: str(entry["name"]))


def _from_secret(secret_name: str, key: str) -> Manifest:
    reference = {"name": secret_name, "key": key, "optional": True}
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _security_context() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # Without it every mount walks the whole filesystem, which holds every model of every job.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security(capabilities: Sequence[str]) -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]} | ({"add": list(capabilities)} if capabilities else {}),
    }


def _volume_mounts(mounts: Sequence[Disk]) -> list[Manifest]:
    return [
        {"name": "job", "mountPath": str(paths.JOB_FILE.parent), "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        *({"name": disk.volume, "mountPath": str(disk.mount_path)} for disk in mounts),
    ]


def _volumes(plan: Plan, mounts: Sequence[Disk]) -> list[Manifest]:
    return [
        {"name": "job", "configMap": {"name": names.config_map(plan.name)}},
        {"name": "scratch", "emptyDir": {}},
        # A container's own /dev/shm has 64 MiB; NCCL and data loaders need more.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        *({"name": disk.volume, "persistentVolumeClaim": {"claimName": disk.claim_name}} for disk in mounts),
    ]
