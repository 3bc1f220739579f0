"""The screen of `watch` and the lines in its place, drawn from what a job tells."""

import xml.etree.ElementTree as ElementTree
from io import StringIO

import pytest
from rich.console import Console

from dev.picture import svg
from finetune_cli.draw.status import draw_job, draw_jobs
from finetune_cli.draw.watch import Screen, describe_outcome, describe_progress, draw_watch
from finetune_cli.pods import see_pods
from finetune_cli.readings import EventView, GpuReading, NodeReading
from tests.unit.cli.views import NOW, make_view, running_status, train_pod
from tests.unit.operator.kubernetes_objects import TRAINED

TWO_BY_EIGHT = {"compute": {"nodes": 2, "gpusPerNode": 8}}


def lines(screen: Screen, width: int = 120) -> list[str]:
    console = Console(width=width, record=True, file=StringIO(), legacy_windows=False)
    console.print(draw_watch(screen, NOW, width))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_running_job_shows_steps_loss_speed_and_checkpoint() -> None:
    screen = Screen(make_view(running_status(), TWO_BY_EIGHT), losses={1: 2.0, 2: 1.5, 412: 0.7312})
    shown = lines(screen)
    assert shown[0] == "calls   Running   14m00s"
    assert shown[1] == "   2 x 8 GPUs   namespace team-a".strip()
    assert "step        ████████████████▌───────────────────────  412/1000  41%   1h05m left" in shown
    assert "loss        █▅▁  2.0000 -> 0.7312" in shown
    assert "speed       18.3k tokens/s   learning rate 1.6e-04   epoch 1" in shown
    assert "checkpoint  step 400, 3m00s ago, 1.9 GiB" in shown


def test_each_node_is_a_line_with_a_block_for_each_gpu() -> None:
    job = make_view(running_status(), TWO_BY_EIGHT)
    pods = see_pods(job, [train_pod(0), train_pod(1)])
    busy = NodeReading(gpus=tuple(GpuReading(index, 1.0, 60 * 2**30) for index in range(8)))
    half = NodeReading(gpus=tuple(GpuReading(index, index % 2, 61 * 2**30) for index in range(8)))
    shown = lines(Screen(job, pods, {pods[0].name: busy, pods[1].name: half}))
    assert "0-7    calls-a1-node-0-x7k2p   gpu-0   Running   ████████   ████████████ 100%   60.0 GiB" in shown
    assert "8-15   calls-a1-node-1-x7k2p   gpu-1   Running   ▁█▁█▁█▁█   ██████────── 50%    61.0 GiB" in shown


def test_pods_without_gpus_have_no_columns_for_them() -> None:
    job = make_view(running_status(), {"compute": {"nodes": 2, "device": "cpu"}})
    shown = lines(Screen(job, see_pods(job, [train_pod(0)])))
    assert "RANK   POD                     NODE    STATE" in shown


def test_the_newer_step_of_the_exporter_moves_the_bar() -> None:
    job = make_view(running_status())
    shown = "\n".join(lines(Screen(job, readings={"pod": NodeReading(step=500)})))
    assert "500/1000  50%" in shown


def test_a_job_that_waits_says_what_for() -> None:
    waiting = {
        "phase": "Pending",
        "reason": "Unschedulable",
        "conditions": [
            {
                "type": "Running",
                "status": "False",
                "reason": "Unschedulable",
                "message": "No node can take pod x.",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-11-27T11:50:00Z",
            }
        ],
    }
    assert "No node can take pod x." in lines(Screen(make_view(waiting)))


def test_a_job_that_nobody_has_looked_at_says_so() -> None:
    assert "The operator has not looked at this job yet." in lines(Screen(make_view()))


def test_events_have_their_age_and_long_ones_are_cut() -> None:
    event = EventView("2026-11-27T11:55:00Z", "Warning", "NodeLost", "x" * 200)
    shown = lines(Screen(make_view(running_status()), events=(event,)), width=80)
    assert f"5m00s   NodeLost   {'x' * 58}..." in shown


def test_only_the_newest_events_are_shown() -> None:
    events = tuple(EventView(f"2026-11-27T11:5{n}:00Z", "Normal", f"Event{n}", "") for n in range(9))
    shown = "\n".join(lines(Screen(make_view(running_status()), events=events)))
    assert "Event2" not in shown
    assert "Event3" in shown
    assert "Event8" in shown


def test_restarts_name_the_last_cause() -> None:
    attempts = [
        {"number": 1, "started": "2026-11-27T11:46:00Z", "ended": "2026-11-27T11:50:00Z", "reason": "NodeLost"},
        {"number": 2, "started": "2026-11-27T11:51:00Z"},
    ]
    shown = lines(Screen(make_view(running_status(attempts=attempts, restarts=1))))
    assert shown[0] == "calls   Running   attempt 2   14m00s"
    assert "restarts    1, the last one because of NodeLost" in shown


def test_a_suspension_after_a_restart_is_not_taken_for_its_cause() -> None:
    attempts = [
        {"number": 1, "started": "2026-11-27T11:46:00Z", "ended": "2026-11-27T11:48:00Z", "reason": "PodDeleted"},
        {"number": 2, "started": "2026-11-27T11:49:00Z", "ended": "2026-11-27T11:50:00Z", "reason": "Suspended"},
        {"number": 3, "started": "2026-11-27T11:51:00Z"},
    ]
    shown = lines(Screen(make_view(running_status(attempts=attempts, restarts=1))))
    assert "restarts    1, the last one because of PodDeleted" in shown


def test_the_picture_of_a_screen_has_no_spaces_that_a_browser_may_leave_out() -> None:
    picture = svg(Screen(make_view(running_status(), TWO_BY_EIGHT), losses={1: 2.0, 2: 1.5, 412: 0.7312}), NOW)
    texts = {
        text.text: float(text.attrib["x"])
        for text in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
        if "textLength" in text.attrib
    }
    assert "2.0000\xa0->\xa00.7312" in texts
    assert not any(text.startswith("\xa0") or text.endswith("\xa0") for text in texts if text)
    # A character is 12.2 wide: 12 for the name, 3 of the curve, 2 spaces.
    assert texts["2.0000\xa0->\xa00.7312"] == pytest.approx(17 * 12.2)


def test_the_end_says_what_came_out_and_what_is_next() -> None:
    job = make_view(running_status(30, phase="Succeeded", reason="Succeeded", result=TRAINED))
    assert describe_outcome(job) == (
        "Succeeded: loss 5.500 -> 2.250 in 30 steps.\nNext: kubectl finetune download calls -n team-a"
    )


def test_a_narrow_terminal_gets_a_shorter_bar() -> None:
    shown = lines(Screen(make_view(running_status())), width=60)
    assert any(line.startswith("step        ██████▋─────────  412/1000  41%") for line in shown)


def test_without_a_terminal_progress_is_one_line() -> None:
    assert describe_progress(Screen(make_view(running_status()))) == "Running  step 412/1000  loss 0.731  eta 1h05m"


def test_the_table_of_jobs_has_a_line_each() -> None:
    ledger = {
        "queuedGpuSeconds": 9999,
        "startingGpuSeconds": 1800,
        "productiveGpuSeconds": 36000,
        "lostGpuSeconds": 1800,
        "activity": "Training",
        "since": "2026-11-27T11:50:00Z",
    }
    jobs = [make_view(running_status(accounting=ledger), TWO_BY_EIGHT), make_view(name="fresh")]
    assert draw_jobs(jobs, NOW, everywhere=False).plain.splitlines() == [
        "NAME    PHASE     STEP       LOSS    ETA     GPUS   GPU-HOURS   RESTARTS   AGE      REASON",
        "calls   Running   412/1000   0.731   1h05m   2x8    11.0        0          14m00s",
        "fresh   New                                  1x1    0.00        0          14m00s",
    ]


def test_one_job_is_told_with_its_attempts_and_its_result() -> None:
    attempts = [
        {
            "number": 1,
            "started": "2026-11-27T11:46:00Z",
            "ended": "2026-11-27T11:50:00Z",
            "reason": "NodeLost",
            "stepsLost": 12,
        },
        {"number": 2, "started": "2026-11-27T11:51:00Z", "resumedFromStep": 400},
    ]
    told = draw_job(make_view(running_status(attempts=attempts, result=TRAINED), TWO_BY_EIGHT), NOW).plain
    assert "1: from the start, NodeLost after 4m00s, 12 steps lost" in told
    assert "2: from step 400, for 9m00s" in told
    assert "Compute     2 nodes x 8 GPUs, Job" in told
    assert "jobs/team/demo/uid/adapter on claim calls-shared" in told
