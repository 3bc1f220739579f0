"""Why a job does not run: from what was seen to findings, each with the command that mends it.

Pure. What could not be seen is told as such: a doctor who may not look does not say that all is well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from finetune_cli import amounts
from finetune_cli.findings import Body, Finding, Level, Seen, Unseen
from finetune_cli.hub_access import Access
from finetune_cli.jobs import Job
from finetune_operator import names
from finetune_operator.api.status import ConditionStatus, ConditionType, Phase
from finetune_operator.quantity import quantity_value
from finetune_trainer.contract.environment import HUGGING_FACE_TOKEN, WANDB_API_KEY
from finetune_trainer.contract.spec import Device, WandbMode
from finetune_trainer.contract.termination import Reason

_SLOW_OPERATOR = timedelta(seconds=30)
_IMAGE_STATES = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_REFUSALS = ("FailedCreate",)
_SHOW_OPERATORS = f"kubectl get deployments -A -l {names.Label.APP_NAME}={names.OPERATOR}"
_INSTALL = "helm install finetune-operator helm/finetune-operator --namespace finetune-system --create-namespace"
_SHOW_GPUS = "kubectl get nodes -o custom-columns=NAME:.metadata.name,GPUS:.status.allocatable.nvidia\\.com/gpu"


def diagnose(seen: Seen, now: datetime) -> tuple[Finding, ...]:
    """Return all findings, in the order in which a job meets what they are about."""
    checks: tuple[Callable[[Seen, datetime], Iterator[Finding]], ...] = (
        _verdict,
        _operator,
        _secret,
        _hub,
        _claims,
        _quotas,
        _pods_refused,
        _nodes,
        _pods,
    )
    return tuple(finding for check in checks for finding in check(seen, now))


def has_problem(findings: Sequence[Finding]) -> bool:
    """Return whether somebody has to do something."""
    return any(finding.level is Level.PROBLEM for finding in findings)


# --- the job itself ---------------------------------------------------------------------------------------------------


def _verdict(seen: Seen, _: datetime) -> Iterator[Finding]:
    job, where = seen.job, _at(seen)
    words = f"{job.phase}: {job.explanation}" if job.explanation else job.phase
    if job.status.phase is Phase.SUSPENDED or job.suspended:
        yield Finding(Level.PROBLEM, "job", words, f"kubectl finetune resume {job.name} {where}")
    elif job.status.phase is Phase.FAILED:
        yield Finding(Level.PROBLEM, "job", words, _after_failure(job, where))
    elif job.status.phase in (Phase.PENDING, Phase.RESTARTING, None):
        yield Finding(Level.WAIT, "job", words, f"kubectl describe finetunejob {job.name} {where}")
    else:
        yield Finding(Level.OK, "job", words)


def _after_failure(job: Job, where: str) -> str:
    accepted = any(
        condition.type is ConditionType.ACCEPTED and condition.status is ConditionStatus.TRUE
        for condition in job.status.conditions
    )
    if not accepted:
        return "mend the file, then: kubectl finetune submit -f FILE"
    if job.status.checkpoint is not None and job.status.reason not in (Reason.DIVERGED, Reason.GATE_NOT_MET):
        return f"kubectl finetune retry {job.name} {where}"
    return f"kubectl finetune logs {job.name} {where}"


def _operator(seen: Seen, now: datetime) -> Iterator[Finding]:
    looked = seen.job.status.observed_generation is not None or bool(seen.job.status.conditions)
    if not looked and now - seen.job.created > _SLOW_OPERATOR:
        age = amounts.since(seen.job.created, now)
        words = f"nobody has looked at this job in {age}: no operator runs, or it does not watch this namespace"
        yield Finding(Level.PROBLEM, "operator", words, _SHOW_OPERATORS)
    if isinstance(seen.operators, Unseen):
        if looked:
            yield Finding(Level.OK, "operator", "has looked at this job")
        else:
            yield Finding(Level.UNKNOWN, "operator", seen.operators.why)
        return
    if not seen.operators and looked:
        yield Finding(Level.OK, "operator", "has looked at this job, though no Deployment of it is on the cluster")
    elif not seen.operators:
        yield Finding(Level.PROBLEM, "operator", "no Deployment of it is on the cluster", _INSTALL)
    for deployment in seen.operators:
        name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
        ready = deployment.get("status", {}).get("readyReplicas", 0)
        if ready:
            yield Finding(Level.OK, "operator", f"{namespace}/{name} is ready")
        else:
            command = f"kubectl -n {namespace} logs deployment/{name}"
            yield Finding(Level.PROBLEM, "operator", f"{namespace}/{name} is not ready", command)


# --- tokens, and what they open ---------------------------------------------------------------------------------------


def _secret(seen: Seen, _: datetime) -> Iterator[Finding]:
    spec, name = seen.typed.spec, seen.typed.spec.secret_name
    needed = {}
    if spec.tracking.wandb is not None and spec.tracking.wandb.mode is WandbMode.ONLINE:
        needed[WANDB_API_KEY] = "spec.tracking.wandb"
    if spec.export.push_to is not None:
        needed[HUGGING_FACE_TOKEN] = "spec.export.pushTo"
    if name is None:
        return
    command = f"kubectl create secret generic {name} {_at(seen)} --from-env-file=.env"
    if isinstance(seen.secret_keys, Unseen):
        yield Finding(Level.UNKNOWN, "secret", seen.secret_keys.why)
    elif seen.secret_keys is None:
        level = Level.PROBLEM if needed else Level.WAIT
        words = f"Secret {name} does not exist" + ("" if needed else "; that is right only where no token is needed")
        yield Finding(level, "secret", words, command)
    else:
        for token, field in needed.items():
            if token not in seen.secret_keys:
                words = f"Secret {name} has no {token}, which {field} needs"
                yield Finding(Level.PROBLEM, "secret", words, _add_token(seen, name))
        if set(needed) <= seen.secret_keys:
            yield Finding(Level.OK, "secret", f"{name} has {', '.join(sorted(seen.secret_keys)) or 'no token'}")


def _hub(seen: Seen, _: datetime) -> Iterator[Finding]:
    reason, where = seen.job.status.reason, _at(seen)
    if reason in (Reason.MODEL_UNAVAILABLE, Reason.DATA_UNAVAILABLE):
        secret = seen.typed.spec.secret_name
        command = _add_token(seen, secret) if secret else f"kubectl finetune logs {seen.job.name} {where}"
        yield Finding(Level.PROBLEM, "hub", seen.job.explanation, command)
        return
    prepared = seen.job.status.plan is not None
    has_token = isinstance(seen.secret_keys, frozenset) and HUGGING_FACE_TOKEN in seen.secret_keys
    for repository, access in seen.hub.items():
        if prepared or access is Access.OPEN:
            yield Finding(Level.OK, "hub", f"{repository} " + ("was downloaded" if prepared else "is open to all"))
        elif access is Access.UNKNOWN:
            yield Finding(Level.UNKNOWN, "hub", f"{repository}: the Hub cannot be asked from here; pods may reach it")
        elif has_token:
            words = f"{repository} is gated or private; HF_TOKEN of the Secret has to be of an account that may read it"
            yield Finding(Level.WAIT, "hub", words)
        else:
            words = f"{repository} is gated, private or not there, and the job has no HF_TOKEN"
            secret = seen.typed.spec.secret_name
            fix = (
                _add_token(seen, secret)
                if secret
                else "set spec.secretName, then: kubectl finetune submit -f FILE --env-file .env"
            )
            yield Finding(Level.PROBLEM, "hub", words, fix)


def _add_token(seen: Seen, secret: str | None) -> str:
    return (
        f"kubectl create secret generic {secret} {_at(seen)} --from-env-file=.env --dry-run=client -o yaml | "
        "kubectl apply -f -"
    )


# --- storage and quota ------------------------------------------------------------------------------------------------


def _claims(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.plan is None:
        return
    if isinstance(seen.claims, Unseen):
        yield Finding(Level.UNKNOWN, "storage", seen.claims.why)
        return
    by_name = {claim["metadata"]["name"]: claim for claim in seen.claims}
    for disk in seen.plan.disks:
        claim = by_name.get(disk.claim_name)
        if claim is not None:
            yield _claim(seen, disk.claim_name, claim)
        elif disk.new is None:
            command = f"kubectl get persistentvolumeclaims {_at(seen)}"
            yield Finding(Level.PROBLEM, "storage", f"claim {disk.claim_name} does not exist", command)
        else:
            yield from _new_claim(seen, disk.claim_name, disk.new.storage_class_name)


def _claim(seen: Seen, name: str, claim: Body) -> Finding:
    phase = claim.get("status", {}).get("phase") or "Pending"
    if phase == "Bound":
        return Finding(Level.OK, "storage", f"claim {name} is bound")
    wanted = claim.get("spec", {}).get("storageClassName")
    if _is_missing_class(seen, wanted):
        words = f"claim {name} names the storage class {wanted}, which the cluster does not have"
        return Finding(Level.PROBLEM, "storage", words, "kubectl get storageclass")
    said = _newest_warning(seen, "PersistentVolumeClaim", name)
    command = f"kubectl describe persistentvolumeclaim {name} {_at(seen)}"
    if said is None:
        return Finding(Level.WAIT, "storage", f"claim {name} waits for its first pod", command)
    return Finding(Level.PROBLEM, "storage", f"claim {name} is {phase}: {said}", command)


def _new_claim(seen: Seen, name: str, storage_class: str | None) -> Iterator[Finding]:
    if _is_missing_class(seen, storage_class):
        words = f"claim {name} is to be of the storage class {storage_class}, which the cluster does not have"
        yield Finding(Level.PROBLEM, "storage", words, "kubectl get storageclass")
    elif not seen.job.has_ended and not seen.job.suspended:
        yield Finding(Level.WAIT, "storage", f"claim {name} is not made yet")


def _is_missing_class(seen: Seen, name: str | None) -> bool:
    if name is None or isinstance(seen.storage_classes, Unseen):
        return False
    return name not in {storage_class["metadata"]["name"] for storage_class in seen.storage_classes}


def _quotas(seen: Seen, _: datetime) -> Iterator[Finding]:
    if isinstance(seen.quotas, Unseen):
        yield Finding(Level.UNKNOWN, "quota", seen.quotas.why)
    elif not seen.job.has_ended and not _any_pod_runs(seen):
        wanted = _asked_of_quotas(seen)
        for quota in seen.quotas:
            yield from _quota(seen, quota, wanted)


def _asked_of_quotas(seen: Seen) -> dict[str, Decimal]:
    """Return what all training pods ask for together, by the names that quotas give it."""
    compute = seen.typed.spec.compute
    wanted = {
        f"requests.{name}": quantity_value(amount) * compute.nodes
        for name, amount in compute.resources.requests.items()
    }
    wanted["pods"] = Decimal(compute.nodes)
    if compute.device is Device.GPU and seen.plan is not None:
        wanted[f"requests.{seen.plan.gpu_resource_name}"] = Decimal(compute.world_size)
    return wanted


def _quota(seen: Seen, quota: Body, wanted: Mapping[str, Decimal]) -> Iterator[Finding]:
    hard = quota.get("status", {}).get("hard") or quota.get("spec", {}).get("hard") or {}
    used = quota.get("status", {}).get("used") or {}
    name, is_short = quota["metadata"]["name"], False
    for resource, amount in wanted.items():
        # What is asked for may be limited under its short name, too.
        found = next((alias for alias in (resource, resource.removeprefix("requests.")) if alias in hard), None)
        if found is None:
            continue
        limit, taken = quantity_value(str(hard[found])), quantity_value(str(used.get(found, "0")))
        if taken + amount <= limit:
            continue
        is_short = True
        words = (
            f"{name} allows {hard[found]} {found}, {used.get(found, '0')} are used, and the job asks for "
            f"{amount.normalize():f}"
        )
        level = Level.PROBLEM if amount > limit else Level.WAIT
        yield Finding(level, "quota", words, f"kubectl describe resourcequota {name} {_at(seen)}")
    if not is_short:
        yield Finding(Level.OK, "quota", f"{name} has room for the training pods")


def _any_pod_runs(seen: Seen) -> bool:
    return not isinstance(seen.pods, Unseen) and any(pod.running for pod in seen.pods)


def _pods_refused(seen: Seen, _: datetime) -> Iterator[Finding]:
    if isinstance(seen.warnings, Unseen) or seen.job.has_ended:
        return
    own = f"{seen.job.name}-"
    told: set[str] = set()
    for event in seen.warnings:
        about = event.get("involvedObject", {})
        words = " ".join(str(event.get("message", "")).split())
        if event.get("reason") not in _REFUSALS or not str(about.get("name", "")).startswith(own) or words in told:
            continue
        told.add(words)
        if isinstance(seen.pods, Unseen) or not seen.pods:
            command = f"kubectl describe job {about.get('name')} {_at(seen)}"
            yield Finding(Level.PROBLEM, "pods", f"the namespace refuses the pods: {words}", command)
            return


# --- nodes and pods ---------------------------------------------------------------------------------------------------


def _nodes(seen: Seen, _: datetime) -> Iterator[Finding]:
    if isinstance(seen.capacity, Unseen):
        yield Finding(Level.UNKNOWN, "nodes", seen.capacity.why)
        return
    if seen.job.has_ended or _any_pod_runs(seen):
        return
    capacity = seen.capacity
    if capacity.fits_now:
        yield Finding(Level.OK, "nodes", f"{amounts.plural(len(capacity.free), 'node')} could take the pods now")
        return
    if capacity.could_ever:
        busy = "; ".join(f"{node.name} {node.not_now}" for node in capacity.able if node.not_now)
        command = "kubectl get pods -A --field-selector status.phase=Running -o wide"
        yield Finding(Level.WAIT, "nodes", f"the pods wait for room: {busy or 'several have to share a node'}", command)
        return
    tainted = [node for node in capacity.nodes if node.never and node.never.startswith("taint ")]
    if tainted:
        yield _taint(tainted[0].taints[0], len(tainted))
    others = [node for node in capacity.nodes if node.never and node not in tainted]
    words = "; ".join(f"{node.name} {node.never}" for node in others[:5])
    if words or not tainted:
        wanted = amounts.plural(capacity.pods_wanted, "pod")
        what = words or "there are fewer nodes than it needs"
        yield Finding(Level.PROBLEM, "nodes", f"the cluster can never take {wanted} of this job: {what}", _SHOW_GPUS)


def _taint(taint: str, count: int) -> Finding:
    key, _, effect = taint.partition(":")
    key, _, value = key.partition("=")
    toleration = f"{{key: {key}, " + (f"value: {value}, " if value else "operator: Exists, ") + f"effect: {effect}}}"
    nodes = amounts.plural(count, "node")
    words = f"{nodes} repel the pods with the taint {taint}, which the job does not tolerate"
    fix = f"add to spec.compute: tolerations: [{toleration}], then delete the job and: kubectl finetune submit -f FILE"
    return Finding(Level.PROBLEM, "nodes", words, fix)


def _pods(seen: Seen, _: datetime) -> Iterator[Finding]:
    if isinstance(seen.pods, Unseen):
        yield Finding(Level.UNKNOWN, "pods", seen.pods.why)
        return
    for pod in seen.pods:
        said = _newest_warning(seen, "Pod", pod.name)
        if pod.state in _IMAGE_STATES:
            words = f"{pod.name} cannot pull its image ({pod.state}): {said or 'see its Events'}"
            fix = (
                f"kubectl create secret docker-registry registry {_at(seen)} --docker-server=... --docker-username=... "
                "--docker-password=..., and spec.compute.imagePullSecrets: [registry]; or mend spec.compute.image"
            )
            yield Finding(Level.PROBLEM, "image", words, fix)
        elif not pod.started and said is not None:
            yield Finding(
                Level.WAIT, "pods", f"{pod.name} is {pod.state}: {said}", f"kubectl describe pod {pod.name} {_at(seen)}"
            )
        elif pod.running:
            yield Finding(Level.OK, "pods", f"{pod.name} runs on {pod.node}")


def _newest_warning(seen: Seen, kind: str, name: str) -> str | None:
    if isinstance(seen.warnings, Unseen):
        return None
    about = [
        event
        for event in seen.warnings
        if (event.get("involvedObject", {}).get("kind"), event.get("involvedObject", {}).get("name")) == (kind, name)
    ]
    newest = max(about, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
    return None if newest is None else " ".join(str(newest.get("message", "")).split())


def _at(seen: Seen) -> str:
    return f"-n {seen.job.namespace}"
