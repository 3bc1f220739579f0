"""A job reads the shared filesystem, and there not what jobs of other namespaces wrote."""

from pathlib import Path

import pytest

from finetune_trainer import hub
from finetune_trainer.contract.job import JobFileError, parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.spec import TrainerSpec
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.prepare import find_model, find_source
from tests.factories import manifest, merged

NO_HUB = hub.Hub("http://127.0.0.1:9")


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    """Of a job of team-a, on a filesystem that team-b uses too."""
    shared = tmp_path / "shared"
    for directory in ("jobs/team-a/own/uid/merged", "jobs/team-b/theirs/uid/merged", "models/mine", "data"):
        (shared / directory).mkdir(parents=True)
    (shared / "jobs/team-b/theirs/uid/heldout.jsonl").write_text("{}\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "environ.jsonl").write_text("HF_TOKEN=hf_secret\n")
    return JobPaths(shared, None, "team-a", "calls", "uid")


def spec(**source: object) -> TrainerSpec:
    """A spec whose model or first data set is at a path."""
    document = merged(manifest(), {"spec": {"storage": None}})["spec"]
    if "model" in source:
        document["model"] = {"path": source["model"]}
    if "data" in source:
        document["datasets"] = [{"path": source["data"], "format": "openai"}]
    return TrainerSpec.model_validate(document)


def refusal(paths: JobPaths, **source: object) -> str:
    wanted = spec(**source)

    def find() -> object:
        return (
            find_model(wanted, paths, NO_HUB) if "model" in source else find_source(wanted.datasets[0], paths, NO_HUB)
        )

    with pytest.raises(TrainerError) as caught:
        find()
    assert caught.value.reason is Reason.INVALID_SPEC
    return str(caught.value)


def test_a_model_and_data_of_ones_own_namespace_are_read(paths: JobPaths) -> None:
    (paths.shared / "jobs/team-a/own/uid/heldout.jsonl").write_text("{}\n")
    assert find_model(spec(model="jobs/team-a/own/uid/merged"), paths, NO_HUB)[1].name == "merged"
    ((_, found),) = find_source(spec(data="jobs/team-a/own/uid/heldout.jsonl").datasets[0], paths, NO_HUB).files
    assert found.name == "heldout.jsonl"


def test_a_link_within_the_filesystem_is_followed(paths: JobPaths) -> None:
    (paths.shared / "models/alias").symlink_to("mine")
    assert find_model(spec(model="models/alias"), paths, NO_HUB)[0] == "models/alias"


@pytest.mark.parametrize("path", ["jobs/team-b/theirs/uid/merged", "./jobs//team-b/theirs/uid/merged", "jobs"])
def test_a_model_of_another_namespaces_job_is_refused(paths: JobPaths, path: str) -> None:
    assert "leads to jobs of another namespace" in refusal(paths, model=path)


def test_data_of_another_namespaces_job_is_refused(paths: JobPaths) -> None:
    assert "leads to jobs of another namespace" in refusal(paths, data="jobs/team-b/theirs/uid/heldout.jsonl")


def test_the_whole_filesystem_is_no_data_set_because_others_jobs_are_on_it(paths: JobPaths) -> None:
    assert "leads to jobs of another namespace" in refusal(paths, data=".")


def test_a_link_to_another_namespaces_job_is_refused(paths: JobPaths) -> None:
    (paths.shared / "models/alias").symlink_to("../jobs/team-b/theirs/uid/merged")
    assert "leads to jobs of another namespace" in refusal(paths, model="models/alias")


def test_a_link_out_of_the_filesystem_is_refused_and_what_it_leads_to_is_not_told(paths: JobPaths) -> None:
    (paths.shared / "data/rows.jsonl").symlink_to(paths.shared.parent / "outside" / "environ.jsonl")
    for path in ("data/rows.jsonl", "data"):
        words = refusal(paths, data=path)
        assert "leads out of the shared filesystem" in words
        assert "hf_secret" not in words


def test_a_file_of_a_model_that_is_a_link_out_of_the_filesystem_is_refused(paths: JobPaths) -> None:
    (paths.shared / "models/mine/config.json").symlink_to(paths.shared.parent / "outside" / "environ.jsonl")
    assert "leads out of the shared filesystem" in refusal(paths, model="models/mine")


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
@pytest.mark.parametrize("value", ["..", ".", "../team-b", "/etc", "a/b", ""])
def test_a_job_file_whose_names_would_leave_its_directory_is_refused(field: str, value: str) -> None:
    document = manifest()
    document["metadata"][field] = value
    with pytest.raises(JobFileError, match=f"metadata.{field}"):
        parse_job(document)
