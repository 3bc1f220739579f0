"""What the operator will do for a job: every default resolved, the roles of the gang, and why.

Pure: the same job, settings and access modes always give the same plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from finetune_operator import names
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.spec import AccessMode, Backend, Reclaim, SharedStorage
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.errors import InvalidJob
from finetune_operator.names import RoleName
from finetune_operator.pricing import Pricing
from finetune_operator.settings import Settings
from finetune_trainer.contract import paths
from finetune_trainer.contract.job import write_job
from finetune_trainer.contract.spec import Device

# Access modes by the name of a claim. One that was not seen yet is missing, or None.
ClaimAccessModes = Mapping[str, Sequence[str] | None]

SHARED_VOLUME = "shared"
NETWORK_VOLUME = "network"
READ_ONLY_MANY = "ReadOnlyMany"


@dataclass(frozen=True)
class NewClaim:
    """A PersistentVolumeClaim that the operator makes."""

    size: str
    storage_class_name: str | None
    access_mode: AccessMode
    deleted_with_job: bool


@dataclass(frozen=True)
class Disk:
    """A claim that pods mount: one that the operator makes, or one that is there (`new` is None)."""

    volume: str
    """Name of the volume in the pods: `shared` or `network`."""
    claim_name: str
    mount_path: PurePosixPath
    new: NewClaim | None
    many_nodes: bool | None
    """Whether pods of several nodes can mount it at once; None for an existing claim that was not seen yet."""


@dataclass(frozen=True)
class Role:
    """Pods of the gang that are alike: they do the same and mount the same."""

    name: RoleName
    nodes: int
    first_rank: int
    mounts: tuple[Disk, ...]


@dataclass(frozen=True)
class Plan:
    """What the operator will do for a job."""

    job: FineTuneJob
    image: str
    image_pull_policy: str
    disks: tuple[Disk, ...]
    backend: Backend
    roles: tuple[Role, ...]
    num_nodes: int
    num_processes_per_node: int
    gpus_per_node: int
    """GPUs that each training pod asks for; 0 trains on the processor."""
    gpu_resource_name: str
    rdma_resource_name: str | None
    """RDMA device that each training pod asks for; None asks for none."""
    unreachable_node_seconds: int
    """How long pods stay on a node that does not answer."""
    gpu_memory_bytes: int | None
    hub_endpoint: str | None
    prepare_cpu: str
    prepare_memory: str
    pricing: Pricing | None
    """What GPUs and storage cost; None where nobody named prices."""
    reasons: tuple[str, ...]
    """What was decided on the user's behalf, and why, a sentence each."""
    digests: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)
    """Of the manifests that were made of it, by kind and name: to see that a child is as it should be takes no more."""

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.metadata.name

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return self.job.metadata.namespace

    def with_status(self, status: FineTuneJobStatus) -> "Plan":
        """Return the same plan after more was told of the job; no manifest rests on what is told."""
        return replace(self, job=self.job.with_status(status))

    @cached_property
    def job_file(self) -> str:
        """The job as its pods read it."""
        return write_job(self.job.trainer_job())

    @property
    def model(self) -> str:
        """The base model as the user named it: a repository, or a path on the shared filesystem."""
        source = self.job.spec.model
        return source.hugging_face.repository if source.hugging_face is not None else str(source.path)

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole gang; its processes where it trains on processors."""
        return self.num_nodes * self.num_processes_per_node

    @property
    def queue_labels(self) -> dict[str, str]:
        """The labels with which the user put the job into a queue (Kueue); none when he did not."""
        labels = self.job.metadata.labels
        return {label.value: labels[label] for label in names.QUEUE_LABELS if label in labels}

    @property
    def shared_mounts(self) -> tuple[Disk, ...]:
        """What a pod mounts that works on the shared filesystem alone, and writes no log files."""
        return tuple(disk for disk in self.disks if disk.volume == SHARED_VOLUME)

    @property
    def missing_claims(self) -> tuple[str, ...]:
        """Names of the existing claims that were not seen yet; their roles are provisional until then."""
        return tuple(disk.claim_name for disk in self.disks if disk.many_nodes is None)


def make_plan(job: FineTuneJob, settings: Settings, claim_access_modes: ClaimAccessModes) -> Plan:
    """Resolve every default of a job that is not the trainer's.

    Args:
        job: what the user wants.
        settings: what the administrator decided for every job.
        claim_access_modes: access modes of the claims in the job's namespace, as far as they were seen.

    Raises:
        InvalidJob: a claim cannot be used as the job wants to, a path leads to another namespace's jobs, a resource is
            asked for twice, or a queue could not admit the gang as a whole.
    """
    compute = job.spec.compute
    disks = _disks(job, claim_access_modes)
    roles, role_reason = _roles(disks, compute.nodes, compute.backend)
    problems = [
        *_problems(job, settings, disks, claim_access_modes),
        *_problems_of_paths(job),
        *_problems_of_queue(job, disks, roles),
    ]
    if problems:
        raise InvalidJob(problems)
    return Plan(
        job=job,
        image=compute.image or settings.trainer_image,
        image_pull_policy=str(compute.image_pull_policy or settings.trainer_image_pull_policy),
        disks=disks,
        backend=compute.backend,
        roles=roles,
        num_nodes=compute.nodes,
        num_processes_per_node=compute.num_processes_per_node,
        gpus_per_node=compute.num_processes_per_node if compute.device is Device.GPU else 0,
        gpu_resource_name=settings.gpu_resource_name,
        rdma_resource_name=settings.rdma_resource_name if compute.rdma else None,
        unreachable_node_seconds=settings.unreachable_node_seconds,
        gpu_memory_bytes=settings.gpu_memory_bytes,
        hub_endpoint=settings.hub_endpoint,
        prepare_cpu=settings.prepare_cpu,
        prepare_memory=settings.prepare_memory,
        pricing=settings.pricing,
        reasons=(role_reason, *_reasons(job, settings, disks)),
    )


def _roles(disks: tuple[Disk, ...], nodes: int, backend: Backend) -> tuple[tuple[Role, ...], str]:
    one_node_disks = [disk for disk in disks if disk.volume == NETWORK_VOLUME and not disk.many_nodes]
    if backend is Backend.PYTORCH_JOB:
        return _master_and_workers(disks, one_node_disks, nodes)
    if nodes == 1:
        return (Role(RoleName.NODE, 1, 0, disks),), "One node: one pod mounts everything."
    if not one_node_disks:
        return (
            (Role(RoleName.NODE, nodes, 0, disks),),
            f"Every claim can be mounted on all {nodes} nodes: one Indexed Job runs the gang.",
        )
    seen = _why_only_one(one_node_disks[0])
    return (
        _leader_and_workers(disks, one_node_disks, nodes),
        f"{seen}: a leader with rank 0 mounts it, the workers ({nodes - 1}) do not.",
    )


def _master_and_workers(
    disks: tuple[Disk, ...], one_node_disks: list[Disk], nodes: int
) -> tuple[tuple[Role, ...], str]:
    """Return the roles of a PyTorchJob, which always has a master."""
    if nodes == 1:
        return (Role(RoleName.LEADER, 1, 0, disks),), "One node: the PyTorchJob is its master alone."
    reason = f"One PyTorchJob runs the gang: a master with rank 0, and the workers ({nodes - 1})."
    if one_node_disks:
        reason += f" {_why_only_one(one_node_disks[0])}: the master alone mounts it."
    return _leader_and_workers(disks, one_node_disks, nodes), reason


def _leader_and_workers(disks: tuple[Disk, ...], one_node_disks: list[Disk], nodes: int) -> tuple[Role, ...]:
    on_every_node = tuple(disk for disk in disks if disk not in one_node_disks)
    return (Role(RoleName.LEADER, 1, 0, disks), Role(RoleName.WORKER, nodes - 1, 1, on_every_node))


def _why_only_one(disk: Disk) -> str:
    claim = f"Claim {disk.claim_name}"
    return f"{claim} was not seen yet" if disk.many_nodes is None else f"{claim} goes to one node only"


def _disks(job: FineTuneJob, claim_access_modes: ClaimAccessModes) -> tuple[Disk, ...]:
    storage, name = job.spec.storage, job.metadata.name
    # One node needs no ReadWriteMany, which many storage classes cannot give.
    shared_mode = AccessMode.READ_WRITE_MANY if job.spec.compute.nodes > 1 else AccessMode.READ_WRITE_ONCE
    owned = storage.reclaim is Reclaim.DELETE

    def disk(volume: str, wanted: SharedStorage, mount: Path, new_name: str, mode: AccessMode) -> Disk:
        new = None if wanted.size is None else NewClaim(wanted.size, wanted.storage_class_name, mode, owned)
        claim_name = wanted.claim_name or new_name
        # NB: a claim of that name may have been kept from an earlier job; it is used as it is.
        access_modes = claim_access_modes.get(claim_name) or (None if new is None else (mode,))
        many_nodes = None if access_modes is None else AccessMode.READ_WRITE_MANY in access_modes
        return Disk(volume, claim_name, PurePosixPath(mount), new, many_nodes)

    disks = [disk(SHARED_VOLUME, storage.shared, paths.SHARED_MOUNT, names.shared_claim(name), shared_mode)]
    if storage.network is not None:
        mode = storage.network.access_mode
        disks.append(disk(NETWORK_VOLUME, storage.network, paths.NETWORK_MOUNT, names.network_claim(name), mode))
    return tuple(disks)


def _problems(job: FineTuneJob, settings: Settings, disks: Sequence[Disk], access: ClaimAccessModes) -> list[str]:
    """Name what cannot be done on this cluster; a claim that was not seen yet is no problem."""
    problems = [_problem_of_claim(disk, job.spec.compute.nodes, access.get(disk.claim_name)) for disk in disks]
    if settings.gpu_resource_name in job.spec.compute.resources.limits:
        problems.append(
            f"spec.compute.resources.limits: leave {settings.gpu_resource_name} out; it follows from gpusPerNode"
        )
    return [problem for problem in problems if problem is not None]


def _problems_of_paths(job: FineTuneJob) -> list[str]:
    """Name paths to what jobs of other namespaces wrote; links are followed by prepare, which sees the filesystem."""
    namespace = job.metadata.namespace
    named = {"spec.model.path": job.spec.model.path} | {
        f"spec.datasets[{index}].path": dataset.path for index, dataset in enumerate(job.spec.datasets)
    }
    return [
        f"{field}: {path} leads to jobs of other namespaces; a job of {namespace} reads jobs/{namespace}/ alone"
        for field, path in named.items()
        if path is not None
        and PurePosixPath(path).parts[:1] == ("jobs",)
        and PurePosixPath(path).parts[1:2] != (namespace,)
    ]


def _problems_of_queue(job: FineTuneJob, disks: Sequence[Disk], roles: Sequence[Role]) -> list[str]:
    """Name a gang that a queue would admit in parts: Kueue admits each Job by itself.

    Labels can be changed at any time, so only a job that is not accepted yet is refused for one.
    """
    queue = job.metadata.labels.get(names.Label.QUEUE)
    is_seen = all(disk.many_nodes is not None for disk in disks)
    if queue is None or len(roles) == 1 or job.spec.compute.backend is not Backend.JOB or not is_seen or _accepted(job):
        return []
    return [
        f"metadata.labels: queue {queue} admits each Job by itself, and this gang is two of them, because the network "
        "disk goes to one node only; one could hold its GPUs and wait for the other in vain. Set compute.backend to "
        "PyTorchJob, which is admitted as a whole, or use a network disk that is ReadWriteMany, or leave "
        "storage.network out"
    ]


def _accepted(job: FineTuneJob) -> bool:
    return any(
        condition.type is ConditionType.ACCEPTED and condition.status is ConditionStatus.TRUE
        for condition in job.status.conditions
    )


def _problem_of_claim(disk: Disk, nodes: int, access_modes: Sequence[str] | None) -> str | None:
    if not access_modes:
        return None
    field = f"spec.storage.{disk.volume}" + (".claimName" if disk.new is None else "")
    origin = "" if disk.new is None else " is there already, kept from an earlier job of this name, and"
    claim = f"{field}: claim {disk.claim_name}{origin} has access modes {', '.join(access_modes)}"
    if all(mode == READ_ONLY_MANY for mode in access_modes):
        return f"{claim}, so that nothing can be written to it; use a claim that is ReadWriteMany"
    if disk.volume == SHARED_VOLUME and nodes > 1 and not disk.many_nodes:
        remedy = "set compute.nodes to 1, or use a claim that is ReadWriteMany"
        return f"{claim}, but {nodes} nodes have to mount it at once; {remedy}"
    return None


def _reasons(job: FineTuneJob, settings: Settings, disks: tuple[Disk, ...]) -> list[str]:
    compute, reasons = job.spec.compute, []
    if compute.image is None:
        reasons.append(f"compute.image is not set: the operator's trainer image {settings.trainer_image} is used.")
    if compute.device is Device.GPU and compute.gpus_per_node is None:
        reasons.append("compute.gpusPerNode is not set: one GPU a node.")
    if job.spec.storage.network is None:
        reasons.append("storage.network is not set: log files lie on the shared filesystem.")
    for disk in disks:
        if disk.new is None:
            continue
        storage_class = disk.new.storage_class_name or "the cluster's default storage class"
        kept = "deleted with the job" if disk.new.deleted_with_job else "kept when the job is deleted"
        reasons.append(
            f"Claim {disk.claim_name}: {disk.new.size}, {disk.new.access_mode}, {storage_class}; it is {kept}."
        )
    return reasons
