"""What holds for a job whatever happens to it: a machine that plays Kubernetes, its users and its disasters.

hypothesis makes up the stories. After each turn the operator may look, look and be killed half-way, or not look at all;
in the end everything works, and every job has to come to its own end by the wakes and the watches alone.
"""

from copy import deepcopy
from datetime import datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from finetune_operator.accounting import gpu_seconds
from finetune_operator.api.status import Activity, FineTuneJobStatus
from finetune_operator.causes import Trouble
from finetune_operator.decide import Decision
from finetune_operator.progress import Heard
from finetune_operator.status import is_finished
from finetune_operator.store import object_key
from tests.factories import merged
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import EVALUATE, LEADER_AND_WORKER, PREPARE, TRAIN, Body, World, set_job_condition

STAGES = (PREPARE, TRAIN, EVALUATE)
MAX_RESTARTS = 3
SPEC = {
    "evaluation": {"enabled": True},
    "runPolicy": {"maxRestarts": MAX_RESTARTS, "stallTimeoutSeconds": 120, "activeDeadlineSeconds": 4000},
}
NUM_PROCESSES = 2
TOTAL_STEPS = 30
TOLD_BY_WATCH = {"Unschedulable", "ImagePullFailed", "ContainerNotCreated", "Queued", "Suspended"}
RUNS: Body = objects.running()
WAITS: dict[str, Body] = {
    "for a node": objects.unschedulable(),
    "for its image": objects.waiting("ImagePullBackOff", "not found"),
    "for its container": objects.waiting("ContainerCreating"),
}
FAILS: dict[str, Body] = {
    "with an error": objects.ended(objects.failure_message("Error"), exit_code=1),
    "by diverging": objects.ended(objects.failure_message("Diverged"), exit_code=1),
    "on a full disk": objects.ended(objects.failure_message("StorageFull"), exit_code=1),
    "by losing its peer": objects.ended(objects.failure_message("CollectiveFailed"), exit_code=1),
    "out of memory": objects.ended("", exit_code=137, reason="OOMKilled"),
    "by preemption": objects.disrupted("PreemptionByScheduler"),
    "with its node": objects.disrupted("DeletionByTaintManager"),
}
CONDITIONS = ("Accepted", "Prepared", "Running", "Evaluated", "Suspended", "Complete", "Failed")
SILENT_NODE = [
    {"type": "Ready", "status": "False", "lastTransitionTime": None},
    {"type": "ContainersReady", "status": "True", "lastTransitionTime": None},
]


class AnyJob(RuleBasedStateMachine):
    """One job with a leader and a worker, in a cluster where anything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(merged(LEADER_AND_WORKER, SPEC))
        self.world.lingers = True
        self.dead_nodes: set[str] = set()
        """Uids of the pods whose kubelet is dead."""
        self.seen: list[FineTuneJobStatus] = [self.world.status]
        self.process_seconds = 0
        """Wall time of the training stage times its processes, as a person with a watch would count it."""
        self.step_done, self.step_saved, self.resumed_from = 0, 0, 0

    @initialize(rounds=st.sampled_from([0, 2, 7, 8, 9]), has_trained=st.booleans())
    def it_was_going_well(self, rounds: int, has_trained: bool) -> None:
        if rounds:
            self.all_goes_well_for_a_while(rounds)
        if has_trained:
            self.training_is_done()
            self.the_job_controller_notices()
            self.the_operator_looks(None)

    @rule(rounds=st.integers(1, 5))
    def all_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self._go_well()
            self.the_operator_looks(None)
            self._advance(1)

    # What the operator does.

    @rule(killed_after=st.sampled_from([None, None, None, "made", "told"]))
    def the_operator_looks(self, killed_after: str | None) -> None:
        wants_to_look_at_once = True
        while wants_to_look_at_once:
            before = self.world.status
            decision = self.world.step(killed_after)
            self.seen.append(self.world.status)
            self._check(before, decision)
            wants_to_look_at_once = decision.wake_after_seconds == 0 and killed_after is None
        if killed_after is None and self.world.obstacle is None:
            again = self.world.decide()
            assert (again.apply, again.delete, again.status) == ((), (), self.world.status)
            self._check_nodes_of_a_finished_job()

    def _check_nodes_of_a_finished_job(self) -> None:
        """A finished job holds no node, but for a Job with a failed pod: its controller takes the others down."""
        if not is_finished(self.world.status):
            return
        for job in self.world.jobs(TRAIN):
            pods = self.world.owned_by(job)
            assert _leaves(job) or any(_ended(pod) for pod in pods) or not any(map(_holds_a_node, pods))

    def _check(self, before: FineTuneJobStatus, decision: Decision) -> None:
        if self.world.body["spec"].get("suspend") or is_finished(before):
            assert decision.apply == ()
        told_by_watch = decision.status.phase in ("Preparing", "Evaluating") or decision.status.reason in TOLD_BY_WATCH
        # Nobody is forgotten: who waits looks again by itself, or waits for what a watch tells of.
        assert is_finished(decision.status) or decision.wake_after_seconds is not None or told_by_watch
        for manifest in decision.apply:
            attempt = manifest["metadata"]["labels"].get("finetune.dev/attempt")
            assert attempt is None or self._attempts_with_live_pods() <= {attempt}

    @rule(refused=st.booleans())
    def the_api_server_refuses(self, refused: bool) -> None:
        self.world.obstacle = Trouble("Refused", "exceeded quota") if refused else None

    # What Kubernetes does.

    @rule()
    def the_job_controller_makes_pods(self) -> None:
        for stage in STAGES:
            for job in self.world.jobs(stage):
                if not job.get("status", {}).get("conditions") and not _leaves(job) and not job.get("hasHadPods"):
                    job["hasHadPods"] = True
                    self.world.make_pods_of(job)

    @rule()
    def the_job_controller_notices(self) -> None:
        for stage in STAGES:
            for job in self.world.jobs(stage):
                pods = self.world.owned_by(job)
                lacking = job.get("hasHadPods") and len(pods) < job["spec"].get("completions", 1)
                if lacking or any(pod["status"]["phase"] == "Failed" for pod in pods):
                    set_job_condition(job, "Failed")
                elif pods and all(pod["status"]["phase"] == "Succeeded" for pod in pods):
                    set_job_condition(job, "Complete")

    @rule(which=st.integers(0, 5), why=st.sampled_from(sorted(WAITS)))
    def a_pod_waits(self, which: int, why: str) -> None:
        if (pod := self._pod(which)) is not None and pod["status"]["phase"] == "Pending":
            pod["status"] = deepcopy(WAITS[why])

    @rule(stage=st.sampled_from(STAGES))
    def all_pods_run(self, stage: str) -> None:
        for pod in self.world.pods(stage):
            if pod["status"]["phase"] == "Pending" and not _leaves(pod):
                pod["status"] = deepcopy(RUNS)

    @rule(which=st.integers(0, 5), how=st.sampled_from(sorted(FAILS)))
    def a_pod_fails(self, which: int, how: str) -> None:
        pod = self._pod(which)
        if pod is None or pod["status"]["phase"] != "Running":
            return
        if pod["metadata"]["uid"] not in self.dead_nodes:
            pod["status"] = deepcopy(FAILS[how])
        elif how == "with its node":
            pod["status"]["conditions"] += deepcopy(FAILS[how]["conditions"])

    @rule(which=st.integers(0, 5))
    def a_pod_is_deleted(self, which: int) -> None:
        if (pod := self._pod(which)) is not None:
            self.world.ask_to_leave(object_key(pod))

    @rule(which=st.integers(0, 5))
    def a_pod_vanishes(self, which: int) -> None:
        if (pod := self._pod(which)) is not None:
            self.world.remove(object_key(pod))

    @rule(which=st.integers(0, 5))
    def a_node_dies(self, which: int) -> None:
        if (pod := self._pod(which)) is not None and pod["status"]["phase"] == "Running":
            self.dead_nodes.add(pod["metadata"]["uid"])
            conditions = [silent | {"lastTransitionTime": self.world.now.isoformat()} for silent in SILENT_NODE]
            pod["status"]["conditions"] = conditions

    @rule()
    def the_taint_manager_evicts(self) -> None:
        for pod in self._pods():
            if pod["metadata"]["uid"] in self.dead_nodes and not _leaves(pod):
                pod["status"]["conditions"] += deepcopy(FAILS["with its node"]["conditions"])
                self.world.ask_to_leave(object_key(pod))

    @rule()
    def the_kubelets_take_down_what_is_to_go(self) -> None:
        for stage in STAGES:
            for pod in self.world.pods(stage):
                if _leaves(pod) and pod["metadata"]["uid"] not in self.dead_nodes and not _ended(pod):
                    pod["status"] = objects.ended(objects.failure_message("Terminated"), exit_code=143)

    @rule()
    def the_garbage_collector_comes(self) -> None:
        for key, body in list(self.world.objects.items()):
            if key.kind == "Pod" and _leaves(body) and not _ended(body):
                continue
            if _leaves(body) and not self.world.owned_by(body):
                del self.world.objects[key]

    @rule()
    def the_claims_are_bound(self) -> None:
        self.world.bind_claims()

    @rule(seconds=st.sampled_from([1, 5, 15, 60, 300]))
    def time_passes(self, seconds: int) -> None:
        self._advance(seconds)

    # What the trainer does.

    @rule()
    def prepare_is_done(self) -> None:
        for pod in self.world.pods(PREPARE):
            if self._lives(pod):
                pod["status"] = objects.ended(objects.held_out(2))

    @rule(steps=st.integers(0, 9), saves=st.booleans())
    def steps_are_done(self, steps: int, saves: bool) -> None:
        attempts = self.world.status.attempts
        if attempts and attempts[-1].ended is None and attempts[-1].resumed_from_step is None:
            self.resumed_from = self.step_done = self.step_saved
        if not attempts or self.world.status.phase != "Running":
            return
        self.step_done = min(self.step_done + steps, TOTAL_STEPS)
        if saves:
            self.step_saved = self.step_done
        now = self.world.now.isoformat()
        self.world.heard = objects.heard(
            step=self.step_done,
            last_step_time=now,
            resumed_from_step=self.resumed_from,
            checkpoint=objects.checkpoint(self.step_saved, now) if self.step_saved else None,
        )

    @rule(answers=st.booleans())
    def rank_0_says_nothing_new(self, answers: bool) -> None:
        self.world.heard = Heard(answers=answers)

    @rule()
    def training_is_done(self) -> None:
        pods = [pod for pod in self.world.pods(TRAIN) if not _leaves(pod)]
        if len(pods) == 2 and all(map(self._lives, pods)):
            for pod in pods:
                rank_0 = "leader" in pod["metadata"]["name"]
                pod["status"] = objects.ended(objects.TRAINED_MESSAGE if rank_0 else objects.DONE_MESSAGE)

    @rule()
    def evaluating_is_done(self) -> None:
        for pod in self.world.pods(EVALUATE):
            if self._lives(pod):
                pod["status"] = objects.ended(objects.EVALUATED_MESSAGE)

    # What people do.

    @rule(suspended=st.booleans())
    def somebody_suspends_or_resumes(self, suspended: bool) -> None:
        self.world.suspend(suspended)

    @rule()
    def somebody_suspends_and_waits(self) -> None:
        self.world.suspend(True)
        for _ in range(3):
            self.the_operator_looks(None)
            self._advance(1)
            self.the_kubelets_take_down_what_is_to_go()
            self.the_garbage_collector_comes()
        self.the_operator_looks(None)

    @rule(which=st.integers(0, 15))
    def somebody_deletes_something(self, which: int) -> None:
        kept = ("Pod", "PersistentVolumeClaim")
        keys = sorted(key for key in self.world.objects if key.kind not in kept)
        if keys:
            self.world.ask_to_leave(keys[which % len(keys)])

    # What always holds.

    @invariant()
    def two_gangs_never_have_pods_at_once(self) -> None:
        assert len(self._attempts_with_live_pods()) <= 1

    @invariant()
    def a_job_that_is_called_suspended_has_no_pod_that_runs(self) -> None:
        assert self.world.status.phase != "Suspended" or all(map(_ended, self._pods()))

    @invariant()
    def attempts_only_grow_and_what_has_ended_stays_ended(self) -> None:
        *_, before, now = [self.seen[0], *self.seen]
        numbers = [attempt.number for attempt in now.attempts]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= len(before.attempts)
        for known, told in zip(before.attempts, now.attempts, strict=False):
            assert (told.number, told.started) == (known.number, known.started)
            assert known.ended is None or (told.ended, told.reason) == (known.ended, known.reason)
        assert all(attempt.ended is not None for attempt in now.attempts[:-1])

    @invariant()
    def a_finished_job_never_moves(self) -> None:
        *_, before, now = [self.seen[0], *self.seen]
        assert not is_finished(before) or now == before

    @invariant()
    def conditions_keep_their_order_and_their_time_while_the_answer_stays(self) -> None:
        *_, before, now = [self.seen[0], *self.seen]
        known = {condition.type: condition for condition in before.conditions}
        told = [condition.type.value for condition in now.conditions]
        assert told == [kind for kind in CONDITIONS if kind in told]
        for condition in now.conditions:
            if condition.type in known and known[condition.type].status is condition.status:
                assert condition.last_transition_time == known[condition.type].last_transition_time

    @invariant()
    def restarts_are_counted_and_bounded(self) -> None:
        status = self.world.status
        failed = [attempt for attempt in status.attempts[:-1] if attempt.reason != "Suspended"]
        assert status.restarts == len(failed) + len(status.prepare_failures) + len(status.evaluate_failures)
        assert status.restarts <= MAX_RESTARTS

    @invariant()
    def the_ledger_adds_up_to_the_wall_time(self) -> None:
        ledger = self.world.status.accounting
        if ledger is None:
            return
        open_seconds = (self.world.now - datetime.fromisoformat(ledger.since)).total_seconds()
        still_open = 0 if ledger.activity is Activity.NONE else int(open_seconds) * NUM_PROCESSES
        assert sum(gpu_seconds(ledger).values()) + still_open == self.process_seconds

    def teardown(self) -> None:
        """From here on all goes well: the job comes to its end by itself, within a number of looks."""
        self.world.obstacle = None
        self.world.suspend(False)
        for _ in range(80):
            if is_finished(self.world.status):
                return
            self._go_well()
            if self.world.status.phase == "Running":
                self.training_is_done()
                self.the_job_controller_notices()
            decision = self.world.step()
            self.seen.append(self.world.status)
            self._advance(int(decision.wake_after_seconds or 0) + 1)
            self.two_gangs_never_have_pods_at_once()
            self.the_ledger_adds_up_to_the_wall_time()
        raise AssertionError(f"waits for ever: {self.world.status}")

    def _go_well(self) -> None:
        self.the_claims_are_bound()
        self.the_taint_manager_evicts()
        self.the_kubelets_take_down_what_is_to_go()
        self.the_garbage_collector_comes()
        self.the_job_controller_makes_pods()
        for stage in STAGES:
            self.all_pods_run(stage)
        self.prepare_is_done()
        self.evaluating_is_done()
        self.the_job_controller_notices()

    def _advance(self, seconds: int) -> None:
        status = self.world.status
        is_training = status.attempts and not status.has_trained
        if is_training and status.phase != "Suspended" and not is_finished(status):
            self.process_seconds += seconds * NUM_PROCESSES
        self.world.advance(seconds)

    def _lives(self, pod: Body) -> bool:
        return pod["status"]["phase"] == "Running" and pod["metadata"]["uid"] not in self.dead_nodes

    def _pod(self, which: int) -> Body | None:
        pods = self._pods()
        return pods[which % len(pods)] if pods else None

    def _pods(self) -> list[Body]:
        return [pod for stage in STAGES for pod in self.world.pods(stage)]

    def _attempts_with_live_pods(self) -> set[str]:
        return {pod["metadata"]["labels"]["finetune.dev/attempt"] for pod in self.world.pods(TRAIN) if not _ended(pod)}


def _leaves(body: Body) -> bool:
    return "deletionTimestamp" in body["metadata"]


def _holds_a_node(pod: Body) -> bool:
    return not _ended(pod) and not _leaves(pod)


def _ended(pod: Body) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


TestAnyJob = AnyJob.TestCase
TestAnyJob.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
