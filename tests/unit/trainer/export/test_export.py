"""What the evaluate stage leaves of a trained job: the card, a merged model, an upload."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import hf_hub_download

from dev.hub.server import HubServer, serving
from dev.hub.store import Store
from finetune_trainer.contract.evaluation import EvaluationReport, GateResult, Measure, Scores
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.outcome import PushTo
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import DatasetReport, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.export.serving import vllm_command
from finetune_trainer.export.stage import Result, export
from finetune_trainer.export.upload import upload_adapter
from finetune_trainer.hub import Hub
from finetune_trainer.toolcalls import CallStyle
from tests.chat_models import CHATML_WITH_TOOLS, VOCABULARY_SIZE, write_tokenizer
from tests.peft_models import write_random_adapter
from tests.tiny_run import MODEL_PATH, plan_of, write_tiny_model
from tests.unit.trainer.evaluate.memorised import TRAINED, make_job

TOKEN = "a-token-that-may-write"
SCORES = Scores(function_accuracy=Measure(value=0.875, low=0.81, high=0.93, count=96))


def trained_job(root: Path, **groups: Any) -> tuple[TrainerJob, JobPaths]:
    job, paths = make_job(root, **groups)
    model = write_tiny_model(paths.shared / MODEL_PATH, vocab_size=VOCABULARY_SIZE)
    write_tokenizer(paths.shared / MODEL_PATH, CHATML_WITH_TOOLS)
    paths.job.mkdir(parents=True)
    write_random_adapter(model, paths.adapter)
    (paths.adapter / "README.md").unlink()
    config = json.loads((paths.adapter / "adapter_config.json").read_text())
    (paths.adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": MODEL_PATH}))
    return job, paths


def result_of(job: TrainerJob, paths: JobPaths, evaluated: EvaluationReport | None = None) -> Result:
    prepared = plan_of(job, paths.shared, 12).model_copy(
        update={
            "model": f"team/base@{'0' * 40}",
            "datasets": (DatasetReport(name="team/calls", revision="abc", rows_read=10, rows_kept=9),),
        }
    )
    return Result(prepared.model_copy(update={"model": MODEL_PATH}), TRAINED, evaluated)


def report_of(*, gate_met: bool) -> EvaluationReport:
    return EvaluationReport(
        rows=20,
        turns=120,
        calling_turns=96,
        base=Scores(function_accuracy=Measure(value=0.0, low=0.0, high=0.0, count=96)),
        tuned=SCORES,
        gate=(GateResult(condition="functionAccuracy >= 0.9", met=gate_met, found="0.875"),),
        gate_met=gate_met,
        seconds=1.0,
        report_path="evaluation/evaluation.json",
        notes=("the base model did not end 3 turns",),
    )


def test_the_card_tells_everything_of_the_job(tmp_path: Path) -> None:
    job, paths = trained_job(tmp_path)
    report = export(job, paths, result_of(job, paths, report_of(gate_met=True)), {})
    card = (paths.shared / report.model_card_path).read_text()
    _, front_matter, text = card.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "function-calling"],
    }
    for told in (
        "# tiny",
        "A LoRA adapter of rank 64 for **models/tiny**",
        'PeftModel.from_pretrained(base, "path/of/this/directory")',
        f"vllm serve {paths.shared / MODEL_PATH} --enable-lora --lora-modules tiny={paths.adapter} --max-lora-rank 64 "
        "--enable-auto-tool-choice --tool-call-parser hermes",
        "| functionAccuracy | 0.000 (0.000 to 0.000) | 0.875 (0.810 to 0.930) |",
        "| loss | - | - |",
        "- functionAccuracy >= 0.9: met, 0.875",
        "- the base model did not end 3 turns",
        "| team/calls | abc | 10 | 9 |",
        "- loss: 6.0000 at the first step, 0.1000 at the end",
        f"- adapter: `sha256:{'0' * 64}`",
        "learningRate: 0.0002",
    ):
        assert told in text, told


def test_a_base_on_the_hub_is_linked_with_its_revision(tmp_path: Path) -> None:
    source = {"huggingFace": {"repository": "team/base"}}
    data = [{"huggingFace": {"repository": "team/calls"}, "format": "hermes"}]
    job, paths = trained_job(tmp_path, model=source, datasets=data)
    result = result_of(job, paths)
    result = Result(result.prepared.model_copy(update={"model": f"team/base@{'a' * 40}"}), TRAINED, None)
    card = (paths.shared / export(job, paths, result, {}).model_card_path).read_text()
    front_matter = yaml.safe_load(card.split("---\n")[1])
    assert (front_matter["base_model"], front_matter["datasets"]) == ("team/base", ["team/calls"])
    assert f'from_pretrained("team/base", revision="{"a" * 40}")' in card
    assert "Not evaluated: no rows were held out." in card


def test_a_merged_model_is_written_when_it_is_asked_for(tmp_path: Path) -> None:
    job, paths = trained_job(tmp_path, export={"merged": True})
    report = export(job, paths, result_of(job, paths), {})
    assert report.merged_path == "jobs/default/tiny/local/merged"
    assert (paths.merged / "model.safetensors").stat().st_size > (report.merged_bytes or 0) > 0
    assert f"vllm serve {paths.merged} --served-model-name tiny" in (paths.adapter / "README.md").read_text()


def test_where_the_gate_is_not_met_only_the_card_is_written(tmp_path: Path) -> None:
    wanted = {"merged": True, "pushTo": {"repository": "team/calls"}}
    job, paths = trained_job(tmp_path, export=wanted)
    report = export(job, paths, result_of(job, paths, report_of(gate_met=False)), {})
    assert (report.merged_path, report.pushed_to) == (None, None)
    assert not paths.merged.exists()
    assert "The job's gate was **not met**" in (paths.adapter / "README.md").read_text()


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    (tmp_path / "store").mkdir()
    with serving(HubServer(Store(tmp_path / "store"), "127.0.0.1", 0, token=TOKEN)) as server:
        yield server


@pytest.fixture
def _without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trainer's own process has it, which sets HF_HUB_DISABLE_XET before it imports anything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.mark.usefixtures("_without_xet")
def test_an_adapter_is_uploaded_whole_and_can_be_downloaded(tmp_path: Path, server: HubServer) -> None:
    job, paths = trained_job(tmp_path, export={"pushTo": {"repository": "team/calls"}})
    environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN}
    pushed = [export(job, paths, result_of(job, paths), environment).pushed_to for _ in range(2)]
    assert pushed[0] is not None
    assert pushed[0] == pushed[1], "uploading again changes nothing"
    repository, _, commit = pushed[0].partition("@")
    assert repository == "team/calls"
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        file = hf_hub_download(
            repository, name, revision=commit, endpoint=server.endpoint, token=TOKEN, local_dir=tmp_path / "downloaded"
        )
        assert Path(file).read_bytes() == (paths.adapter / name).read_bytes()
    assert server.store.find("models", "team/calls").settings.gated, "a new repository is private"


def test_a_token_that_may_not_write_is_named_as_the_cause_and_never_told(tmp_path: Path, server: HubServer) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(TrainerError, match="refuses the token: HF_TOKEN in the Secret") as caught:
        upload_adapter(Hub(server.endpoint, "a-secret"), PushTo(repository="team/calls"), tmp_path / "adapter", "m")
    assert caught.value.reason is Reason.UPLOAD_FAILED
    assert "a-secret" not in caught.value.message


def test_without_a_token_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"team/calls was not uploaded: there is no HF_TOKEN") as caught:
        upload_adapter(Hub("http://127.0.0.1:1"), PushTo(repository="team/calls"), tmp_path, "message")
    assert caught.value.reason is Reason.UPLOAD_FAILED


def test_a_hub_that_is_not_there_is_told(tmp_path: Path) -> None:
    hub = Hub("http://127.0.0.1:1", TOKEN)
    with pytest.raises(TrainerError, match=r"http://127\.0\.0\.1:1 cannot be reached, or broke off") as caught:
        upload_adapter(hub, PushTo(repository="team/calls"), tmp_path, "message")
    assert caught.value.reason is Reason.UPLOAD_FAILED


# --- serving ----------------------------------------------------------------------------------------------------------


def test_the_command_allows_a_rank_that_vllm_knows() -> None:
    commands = {
        rank: vllm_command("team/base", "calls", "/adapter", rank, CallStyle.LLAMA) for rank in (4, 64, 65, 1024)
    }
    assert commands[4] == (
        "vllm serve team/base --enable-lora --lora-modules calls=/adapter --max-lora-rank 8 --enable-auto-tool-choice "
        "--tool-call-parser llama3_json"
    )
    assert "--max-lora-rank 64 " in (commands[64] or "")
    assert "--max-lora-rank 128 " in (commands[65] or "")
    assert commands[1024] is None
