"""Names that Kubernetes takes, whatever the job is called."""

import re

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import names
from finetune_operator.names import RoleName

LONGEST_NAME = "a-finetuning-job-with-a-name-as-long-as-the-api-server-takes-it"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

job_names = st.from_regex(r"\A[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
attempts = st.integers(min_value=1, max_value=1001)


def test_children_are_called_after_their_job() -> None:
    assert names.shared_claim("calls") == "calls-shared"
    assert names.network_claim("calls") == "calls-network"
    assert names.config_map("calls") == "calls-config"
    assert names.prepare_job("calls") == "calls-prepare"
    assert names.gang_service("calls", 3) == "calls-a3"
    assert names.train_job("calls", 3, RoleName.LEADER) == "calls-a3-leader"
    assert names.pod_hostname("calls-a3-leader", 0) == "calls-a3-leader-0"
    assert names.pytorch_job("calls", 3) == "calls-a3"


def test_a_long_name_is_cut_and_ends_in_eight_digits_of_its_digest() -> None:
    # printf %s "$LONGEST_NAME" | sha256sum
    assert (
        names.train_job(LONGEST_NAME, 1, RoleName.WORKER)
        == "a-finetuning-job-with-a-name-as-long-as-0f15b4d1-a1-worker"
    )


@given(job_names, attempts)
def test_every_child_has_a_name_that_its_kind_may_have(job_name: str, attempt: int) -> None:
    for name in (names.shared_claim(job_name), names.network_claim(job_name), names.config_map(job_name)):
        assert len(name) <= 63
        assert DNS_LABEL.fullmatch(name)
    service = names.gang_service(job_name, attempt)
    assert len(service) <= 63
    assert SERVICE_NAME.fullmatch(service)


@given(job_names, attempts, st.sampled_from(RoleName))
def test_the_hostname_of_every_pod_of_a_large_gang_is_a_dns_label(job_name: str, attempt: int, role: RoleName) -> None:
    hostname = names.pod_hostname(names.train_job(job_name, attempt, role), 1023)
    assert len(hostname) <= 63
    assert DNS_LABEL.fullmatch(hostname)


@given(job_names, attempts)
def test_the_service_of_every_pod_of_a_large_pytorch_job_has_a_name(job_name: str, attempt: int) -> None:
    service = f"{names.pytorch_job(job_name, attempt)}-worker-1022"
    assert len(service) <= 63
    assert SERVICE_NAME.fullmatch(service)


@given(job_names, job_names, attempts)
def test_two_jobs_never_share_a_child(one: str, other: str, attempt: int) -> None:
    if one != other:
        assert names.train_job(one, attempt, RoleName.NODE) != names.train_job(other, attempt, RoleName.NODE)
        assert names.pytorch_job(one, attempt) != names.pytorch_job(other, attempt)
        assert names.shared_claim(one) != names.shared_claim(other)


@given(job_names)
def test_a_name_that_the_test_makes_is_one_that_the_api_takes(job_name: str) -> None:
    assert re.fullmatch(names.JOB_NAME_PATTERN, job_name)
    assert len(job_name) <= names.MAX_LABEL_CHARACTERS


def test_the_pods_of_a_gang_are_selected_by_job_stage_and_attempt() -> None:
    assert names.gang_selector("calls", 2) == {
        "finetune.dev/job": "calls",
        "finetune.dev/stage": "train",
        "finetune.dev/attempt": "2",
    }
