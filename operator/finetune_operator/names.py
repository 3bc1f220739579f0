"""Every string that Kubernetes sees: the API's names, labels, annotations, reasons, and the names of child objects.

Names of children are functions of the job's name. Each fits its kind's limit: what is too long is cut, and eight hex
digits of the whole job name's SHA-256 keep two long names apart.
"""

import hashlib
from enum import StrEnum

from finetune_trainer.contract import job as contract_job

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = contract_job.API_VERSION
KIND = contract_job.KIND
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"
CRD_NAME = f"{PLURAL}.{GROUP}"

OPERATOR = "finetune-operator"
FIELD_MANAGER = OPERATOR

# A job's name becomes a label value (63 characters) and the start of a Service's name. NB: a Service's name, unlike
# that of most objects, may not start with a digit: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
JOB_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_LABEL_CHARACTERS = 63

JOB_NAME_RULE = (
    f"a name has at most {MAX_LABEL_CHARACTERS} characters: lower-case letters, digits and '-'; it begins with a "
    "letter and does not end with '-'"
)

# The hostname of pod 1023 of an Indexed Job is `<job>-1023`, and it is a DNS label too.
MAX_POD_INDEX_CHARACTERS = len("-1023")
MAX_JOB_CHARACTERS = MAX_LABEL_CHARACTERS - MAX_POD_INDEX_CHARACTERS

# Kubeflow's training-operator, v1.9. It knows its container and the port of the rendezvous by these names, and calls a
# pod and the Service of that pod `<PyTorchJob>-worker-1022`.
# https://github.com/kubeflow/trainer/blob/release-1.9/pkg/apis/kubeflow.org/v1/pytorch_types.go
PYTORCH_JOB_GROUP = "kubeflow.org"
PYTORCH_JOB_VERSION = "v1"
PYTORCH_JOB_KIND = "PyTorchJob"
PYTORCH_JOB_PLURAL = "pytorchjobs"
PYTORCH_CONTAINER = "pytorch"
PYTORCH_PORT = "pytorchjob-port"
MAX_PYTORCH_JOB_CHARACTERS = MAX_LABEL_CHARACTERS - len("-worker-1022")


class Label(StrEnum):
    """Label keys of the child objects."""

    APP_NAME = "app.kubernetes.io/name"
    PART_OF = "app.kubernetes.io/part-of"
    MANAGED_BY = "app.kubernetes.io/managed-by"
    JOB = "finetune.dev/job"
    STAGE = "finetune.dev/stage"
    ROLE = "finetune.dev/role"
    ATTEMPT = "finetune.dev/attempt"
    # Kueue's: https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/
    QUEUE = "kueue.x-k8s.io/queue-name"
    QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"


class Annotation(StrEnum):
    """Annotation keys of the child objects, and of a FineTuneJob that `kubectl finetune retry` made."""

    MANIFEST_DIGEST = "finetune.dev/manifest-digest"
    RETRY_OF = "finetune.dev/retry-of"


class Stage(StrEnum):
    """Values of the stage label."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"


class RoleName(StrEnum):
    """Values of the role label: what a pod does in its gang."""

    NODE = "node"
    LEADER = "leader"
    WORKER = "worker"


# What a FineTuneJob's user writes on it for a queue, and what the workloads of its gang take over.
QUEUE_LABELS = (Label.QUEUE, Label.QUEUE_PRIORITY)

APP_NAME = "finetune-trainer"
CHILD_SELECTOR = f"{Label.MANAGED_BY}={OPERATOR}"
CONTAINER = "trainer"


def job_labels(job_name: str) -> dict[str, str]:
    """Return the labels that every child object of a job has."""
    return {
        Label.APP_NAME.value: APP_NAME,
        Label.PART_OF.value: OPERATOR,
        Label.MANAGED_BY.value: OPERATOR,
        Label.JOB.value: job_name,
    }


def gang_selector(job_name: str, attempt: int) -> dict[str, str]:
    """Return the labels that select all training pods of one attempt, and no others."""
    return {
        Label.JOB.value: job_name,
        Label.STAGE.value: Stage.TRAIN.value,
        Label.ATTEMPT.value: str(attempt),
    }


def shared_claim(job_name: str) -> str:
    """Return the name of the claim on the shared filesystem."""
    return _fitted(job_name, "-shared", MAX_LABEL_CHARACTERS)


def network_claim(job_name: str) -> str:
    """Return the name of the claim on the network disk."""
    return _fitted(job_name, "-network", MAX_LABEL_CHARACTERS)


def config_map(job_name: str) -> str:
    """Return the name of the ConfigMap that carries the job to its pods."""
    return _fitted(job_name, "-config", MAX_LABEL_CHARACTERS)


def prepare_job(job_name: str) -> str:
    """Return the name of the Job that prepares."""
    return _fitted(job_name, "-prepare", MAX_JOB_CHARACTERS)


def evaluate_job(job_name: str) -> str:
    """Return the name of the Job that evaluates."""
    return _fitted(job_name, "-evaluate", MAX_JOB_CHARACTERS)


def gang_service(job_name: str, attempt: int) -> str:
    """Return the name of the headless Service under which the pods of an attempt find each other."""
    return _fitted(job_name, f"-a{attempt}", MAX_LABEL_CHARACTERS)


def train_job(job_name: str, attempt: int, role: RoleName) -> str:
    """Return the name of the Indexed Job that runs a role of an attempt."""
    return _fitted(job_name, f"-a{attempt}-{role}", MAX_JOB_CHARACTERS)


def pytorch_job(job_name: str, attempt: int) -> str:
    """Return the name of the PyTorchJob that runs an attempt."""
    return _fitted(job_name, f"-a{attempt}", MAX_PYTORCH_JOB_CHARACTERS)


def pod_hostname(indexed_job_name: str, index: int) -> str:
    """Return the hostname that Kubernetes gives to a pod of an Indexed Job."""
    return f"{indexed_job_name}-{index}"


def _fitted(job_name: str, suffix: str, max_characters: int) -> str:
    whole = job_name + suffix
    if len(whole) <= max_characters:
        return whole
    mark = "-" + hashlib.sha256(job_name.encode()).hexdigest()[:8]
    return job_name[: max_characters - len(mark + suffix)].rstrip("-") + mark + suffix


class ConditionReason(StrEnum):
    """Reasons of conditions, and of the Events that tell of them, that the operator finds itself.

    Those with which a container ends are `contract.termination.Reason`.
    """

    # Where a job stands.
    ACCEPTED = "Accepted"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    STARTING = "Starting"
    RUNNING = "Running"
    TRAINED = "Trained"
    EVALUATING = "Evaluating"
    EVALUATED = "Evaluated"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    SUCCEEDED = "Succeeded"
    # What an attempt found.
    CHECKPOINT_LOADED = "CheckpointLoaded"
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"
    STORAGE_SHORT = "StorageShort"
    STORAGE_SUFFICES = "StorageSuffices"
    # What keeps it from going on; it waits.
    INVALID_SPEC = "InvalidSpec"
    CLAIM_MISSING = "ClaimMissing"
    BACKEND_MISSING = "BackendMissing"
    CLAIM_PENDING = "ClaimPending"
    STORAGE_CLASS_MISSING = "StorageClassMissing"
    NAME_TAKEN = "NameTaken"
    FORMER_JOB_LEAVING = "FormerJobLeaving"
    REFUSED = "Refused"
    PODS_REFUSED = "PodsRefused"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    QUEUED = "Queued"
    # What ended it from outside of its containers.
    OOM_KILLED = "OOMKilled"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    POD_REJECTED = "PodRejected"
    POD_DELETED = "PodDeleted"
    JOB_FAILED = "JobFailed"
    TRAIN_JOB_DELETED = "TrainJobDeleted"
    REPORT_MISSING = "ReportMissing"
    # What the operator ends itself.
    STALLED = "Stalled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_SPENT = "BudgetSpent"
    PRICES_MISSING = "PricesMissing"
