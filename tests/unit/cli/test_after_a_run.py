"""What is done with a run that has ended: its cost, a comparison, another try, its files."""

import hashlib
import io
import json
import tarfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from finetune_cli.commands.download import check, unpack
from finetune_cli.commands.prune import prune_arguments
from finetune_cli.commands.retry import free_name, retried
from finetune_cli.draw.compare import draw_comparison, make_comparison
from finetune_cli.draw.cost import cost_documents, cost_of, draw_costs
from finetune_cli.draw.exec import Answer, draw_answers, draw_gpus
from finetune_cli.draw.prune import draw_entries, read_entries
from finetune_cli.errand import Place, reader_pod, verb_job
from finetune_cli.errors import CommandError
from finetune_cli.pods import see_pods
from finetune_operator.api.job import FineTuneJob
from tests.factories import make_job, manifest
from tests.unit.cli.views import CREATED, make_view, running_status, train_pod
from tests.unit.operator.kubernetes_objects import PREPARED, TRAINED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def ledger(**more: Any) -> dict[str, Any]:
    accounting = {
        "queuedGpuSeconds": 99_999,
        "startingGpuSeconds": 1800,
        "productiveGpuSeconds": 36_000,
        "lostGpuSeconds": 3600,
        "activity": "None",
        "since": CREATED,
        **more,
    }
    return {"phase": "Succeeded", "accounting": accounting}


def money(total: str, currency: str) -> dict[str, str]:
    return {"total": total, "currency": currency, "storageSince": CREATED}


# --- cost -------------------------------------------------------------------------------------------------------------


def test_waiting_for_gpus_costs_nothing_and_lost_time_does() -> None:
    cost = cost_of(make_view(ledger()), Decimal("2.50"))
    assert cost.used == 41_400
    assert cost.money == Decimal("28.75")
    assert cost.productive_share == pytest.approx(36_000 / 41_400)


def test_what_the_operator_reckons_goes_before_a_price() -> None:
    cost = cost_of(make_view(ledger(cost=money("12.34", "EUR"))), Decimal("2.50"))
    assert (cost.money, cost.currency) == (Decimal("12.34"), "EUR")


def test_processors_have_no_price_of_gpus() -> None:
    assert cost_of(make_view(ledger(), {"compute": {"device": "cpu"}}), Decimal(1)).money is None


def test_the_table_of_costs_ends_with_their_sum() -> None:
    jobs = [make_view(ledger(), name="one"), make_view(ledger(), name="two")]
    assert draw_costs(jobs, Decimal("2.50"), everywhere=False).plain.splitlines() == [
        "NAME    GPU-HOURS   PRODUCTIVE   LOST   STARTING   QUEUED   OF USE   COST",
        "one     11.5        10.0         1.00   0.50       27.8     87%      28.75",
        "two     11.5        10.0         1.00   0.50       27.8     87%      28.75",
        "(all)   23.0        20.0         2.00   1.00       55.6     87%      57.50",
    ]


def test_money_of_two_currencies_is_not_added_up() -> None:
    euros = make_view(ledger(cost=money("1", "EUR")))
    dollars = make_view(ledger(cost=money("1", "USD")))
    assert draw_costs([euros, dollars], None, everywhere=False).plain.splitlines()[-1].split()[-1] == "87%"


def test_a_job_that_never_trained_has_used_nothing() -> None:
    (document,) = cost_documents([make_view()], None)
    assert document["gpuSeconds"]["used"] == 0
    assert (document["productiveShare"], document["cost"]) == (None, None)


# --- compare ----------------------------------------------------------------------------------------------------------


def test_only_fields_that_differ_are_compared_and_defaults_count() -> None:
    specs = tuple(
        make_job(spec).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        for spec in ({}, {"lora": {"rank": 16}, "training": {"epochs": 3}})
    )
    jobs = make_view(running_status(result=TRAINED), name="a"), make_view(running_status(), name="b")
    comparison = make_comparison(jobs, (specs[0], specs[1]), all_fields=False)
    assert comparison.recipe == {"lora.rank": ("64", "16")}
    assert comparison.outcome["final loss"] == ("2.2500", "-")
    assert comparison.outcome["loss"] == ("-", "0.7312")
    assert draw_comparison(comparison).plain.splitlines()[:2] == ["RECIPE      A    B", "lora.rank   64   16"]


def test_equal_recipes_are_said_to_be_equal() -> None:
    spec = make_job().spec.model_dump(mode="json", by_alias=True)
    comparison = make_comparison((make_view(name="a"), make_view(name="b")), (spec, spec), all_fields=False)
    assert draw_comparison(comparison).plain.startswith("The recipes are equal.")


# --- retry ------------------------------------------------------------------------------------------------------------


def old_body() -> dict[str, Any]:
    spec = {"storage": {"network": {"size": "1Gi"}, "reclaim": "Delete"}}
    plan = PREPARED | {
        "model": f"meta-llama/Llama-3.1-8B-Instruct@{COMMIT}",
        "datasets": [{"name": "team/calls", "revision": "f" * 40, "rowsRead": 1, "rowsKept": 1}],
    }
    body = manifest(spec, creationTimestamp=CREATED, labels={"kueue.x-k8s.io/queue-name": "gpus", "mine": "no"})
    return body | {"status": {"phase": "Failed", "plan": plan}}


def test_a_retried_job_uses_the_files_and_the_commits_of_the_old_one_and_waits() -> None:
    new = retried(old_body(), "calls-retry-1")
    job = FineTuneJob.parse(new)
    assert job.spec.suspend
    assert (job.spec.storage.shared.claim_name, job.spec.storage.shared.size) == ("calls-shared", None)
    assert job.spec.storage.network is not None
    assert job.spec.storage.network.claim_name == "calls-network"
    assert str(job.spec.storage.reclaim) == "Retain"
    assert job.spec.model.hugging_face is not None
    assert job.spec.model.hugging_face.revision == COMMIT
    assert job.spec.datasets[0].hugging_face is not None
    assert job.spec.datasets[0].hugging_face.revision == "f" * 40
    assert new["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert new["metadata"]["annotations"]["finetune.dev/retry-of"].startswith("calls/")


def test_the_new_name_is_the_first_that_is_free_and_never_too_long() -> None:
    assert free_name("calls", {"calls"}) == "calls-retry-1"
    assert free_name("calls", {"calls-retry-1", "calls-retry-2"}) == "calls-retry-3"
    assert free_name("x" * 63, set()) == "x" * 55 + "-retry-1"


# --- pods that are sent to the filesystem -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        verb_job("n", Place("image"), "claim", ["prune"])["spec"]["template"]["spec"],
        reader_pod("n", Place("image"), "claim")["spec"],
    ],
)
def test_pods_of_commands_pass_the_restricted_standard_and_have_no_token(spec: dict[str, Any]) -> None:
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_pod_that_only_reads_cannot_write_and_ends_by_itself() -> None:
    spec = reader_pod("n", Place("image"), "claim")["spec"]
    assert spec["containers"][0]["volumeMounts"][0] == {"name": "shared", "mountPath": "/mnt/shared", "readOnly": True}
    assert spec["activeDeadlineSeconds"] == 3600


# --- prune ------------------------------------------------------------------------------------------------------------


def test_the_trainer_is_told_of_every_job_what_it_names() -> None:
    bodies = [old_body(), manifest({"model": {"huggingFace": None, "path": "models/own"}}, creationTimestamp=CREATED)]
    arguments = prune_arguments(bodies, "team-a", datetime(2026, 11, 27, 12, 0, tzinfo=UTC))
    assert arguments[:4] == ["--namespace", "team-a", "--listed-at", "2026-11-27T12:00:00+00:00"]
    assert arguments.count("--living") == 2
    assert arguments[arguments.index("--keep") + 1] == PREPARED["modelPath"]
    assert "models/own" in arguments
    assert "meta-llama/Llama-3.1-8B-Instruct" in arguments


def test_entries_are_read_from_among_other_lines_and_summed_up() -> None:
    told = {"path": "models/a@1", "bytes": 2**30, "fate": "unused", "why": "no job names it"}
    entries = read_entries(["some warning", json.dumps(told), json.dumps(told | {"path": "b", "fate": "kept"})])
    assert draw_entries(entries, removed=False).plain.splitlines() == [
        "ENTRY        SIZE      FATE",
        "models/a@1   1.0 GiB   unused   no job names it",
        "b            1.0 GiB   kept     no job names it",
        "",
        "1 entry unused: 1.0 GiB",
    ]
    assert draw_entries([], removed=True).plain == "The cache is empty."


# --- exec -------------------------------------------------------------------------------------------------------------


def test_the_answers_of_nodes_are_a_table_with_a_line_for_each_line() -> None:
    pods = see_pods(make_view(spec={"compute": {"nodes": 2}}), [train_pod(0), train_pod(1)])
    answers = [Answer(pods[0], 0, "one\ntwo"), Answer(pods[1], None, "pod is gone")]
    assert draw_answers(answers).plain.splitlines() == [
        "RANK   NODE    EXIT   OUTPUT",
        "0      gpu-0   0      one",
        "                      two",
        "1      gpu-1   -      pod is gone",
    ]


def test_every_gpu_that_nvidia_smi_tells_of_is_a_line() -> None:
    pods = see_pods(make_view(), [train_pod(0)])
    told = "0, NVIDIA H100 80GB HBM3, 97, 62657, 81559, 61, 652.31\n1, NVIDIA L4, [N/A], 0, 23034, 40, [N/A]"
    assert draw_gpus([Answer(pods[0], 0, told)]).plain.splitlines() == [
        "RANK   NODE    GPU   NAME                    UTILISATION      MEMORY          TEMPERATURE   POWER",
        "0      gpu-0   0     NVIDIA H100 80GB HBM3   █████████▊ 97%   61.2/79.6 GiB   61 C          652 W",
        "0      gpu-0   1     NVIDIA L4               ·········· ?     0.0/22.5 GiB    40 C          ?",
    ]


def test_a_node_without_nvidia_smi_says_so_in_its_line() -> None:
    pods = see_pods(make_view(), [train_pod(0)])
    assert "nvidia-smi: not found" in draw_gpus([Answer(pods[0], 127, "nvidia-smi: not found")]).plain


# --- download ---------------------------------------------------------------------------------------------------------


def tar_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_files_are_unpacked_from_pieces_of_any_size(tmp_path: Path) -> None:
    data = tar_of(("./a.bin", bytes(range(256)) * 100), ("./b.json", b"{}"))
    pieces = [b"", *(data[start : start + 777] for start in range(0, len(data), 777)), b""]
    assert unpack(iter(pieces), tmp_path / "out") == 25_602
    assert (tmp_path / "out" / "a.bin").read_bytes() == bytes(range(256)) * 100


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_file_that_would_land_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match="evil"):
        unpack(iter([tar_of((name, b"x"))]), tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_a_link_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(CommandError, match="link"):
        unpack(iter([stream.getvalue()]), tmp_path / "out")


def test_a_stream_that_breaks_off_is_no_download(tmp_path: Path) -> None:
    data = tar_of(("a.bin", b"x" * 100_000))
    with pytest.raises(CommandError, match="broke off"):
        unpack(iter([data[:50_000]]), tmp_path / "out")


def merged_model(directory: Path) -> str:
    """Write a merged model as the trainer does, and return the digest that the job's status tells."""
    weights = b"weights"
    manifest = json.dumps({"sha256": {"model.safetensors": hashlib.sha256(weights).hexdigest()}}).encode()
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "manifest.json").write_bytes(manifest)
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def test_a_merged_model_whose_files_are_those_of_its_manifest_is_taken(tmp_path: Path) -> None:
    check(tmp_path, "manifest.json", merged_model(tmp_path))


def test_a_merged_model_with_another_file_behind_a_right_manifest_is_refused(tmp_path: Path) -> None:
    digest = merged_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(CommandError, match=r"model.safetensors has the digest .* changed, or is damaged"):
        check(tmp_path, "manifest.json", digest)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CommandError, match=r"model.safetensors is not among what came"):
        check(tmp_path, "manifest.json", digest)


def test_a_manifest_that_is_not_the_one_of_the_job_is_refused(tmp_path: Path) -> None:
    merged_model(tmp_path)
    with pytest.raises(CommandError, match=r"manifest.json has the digest"):
        check(tmp_path, "manifest.json", "sha256:00ff")
