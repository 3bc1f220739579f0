"""A job whose adapter knows its held-out rows by heart: made with PEFT and transformers, not with this trainer."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from finetune_trainer.contract.job import TrainerJob, parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import TrainedReport
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.data.heldout import HeldOutRow, write_heldout
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.template import load_tokenizer
from tests.chat_models import CHATML_WITH_TOOLS, VOCABULARY_SIZE, write_tokenizer
from tests.peft_models import without_torchao
from tests.tiny_run import DATA_PATH, MODEL_PATH, plan_of, write_tiny_model

MAX_STEPS = 200
LOSS_OF_KNOWING_BY_HEART = 0.05
SIZES = {"vocab_size": VOCABULARY_SIZE, "hidden_size": 64, "max_position_embeddings": 1024}


def tool(name: str, **properties: str) -> dict[str, Any]:
    types = {key: {"type": value} for key, value in properties.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": types}}}


TOOLS = (tool("get_weather", city="string"), tool("time", zone="string"))
ROWS = [
    HeldOutRow("calls", f"calls.jsonl, row {number}", conversation)
    for number, conversation in enumerate(
        [
            Conversation(
                (
                    Message(Role.USER, "Weather in Paris?"),
                    Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"city": "Paris"}),)),
                    Message(Role.TOOL, '{"sunny": true}'),
                    Message(Role.ASSISTANT, "It is sunny."),
                ),
                TOOLS,
            ),
            Conversation(
                (
                    Message(Role.USER, "Time and weather in Oslo?"),
                    Message(
                        Role.ASSISTANT,
                        "",
                        (ToolCall("time", {"zone": "Oslo"}), ToolCall("get_weather", {"city": "Oslo"})),
                    ),
                ),
                TOOLS,
            ),
            Conversation((Message(Role.USER, "Hello"), Message(Role.ASSISTANT, "How can I help?")), TOOLS),
        ],
        start=1,
    )
]


def write_memorised_job(root: Path, **groups: Any) -> tuple[TrainerJob, JobPaths]:
    """Write a job that was prepared and trained until it knew its held-out rows."""
    job, paths = make_job(root, **groups)
    base = paths.shared / MODEL_PATH
    model = write_tiny_model(base, **SIZES)
    write_tokenizer(base, CHATML_WITH_TOOLS)
    (paths.shared / DATA_PATH).mkdir(parents=True)
    write_heldout(paths.shared / DATA_PATH, ROWS)
    paths.job.mkdir(parents=True)
    paths.prepared.write_text(plan_of(job, paths.shared, 12).model_dump_json(by_alias=True))
    paths.trained.write_text(TRAINED.model_dump_json(by_alias=True))
    _learn_by_heart(model, base, paths.adapter)
    return job, paths


def make_job(root: Path, **groups: Any) -> tuple[TrainerJob, JobPaths]:
    """The same job, with other groups in its spec, on what is already there."""
    spec: dict[str, Any] = {
        "model": {"path": MODEL_PATH},
        "datasets": [{"path": "calls.jsonl", "format": "openai"}],
        "training": {"maxSequenceLength": 512},
        "compute": {"device": "cpu"},
        "evaluation": {"maxNewTokens": 160},
    }
    document = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}}
    job = parse_job(document | {"spec": spec | groups})
    return job, JobPaths.of(job, root / "shared", None)


TRAINED = TrainedReport(
    steps=10,
    first_loss=6.0,
    final_loss=0.1,
    tokens=1000,
    tokens_per_second=100.0,
    adapter_path="jobs/default/tiny/local/adapter",
    adapter_digest="sha256:" + "0" * 64,
)


def _learn_by_heart(model: torch.nn.Module, base: Path, adapter: Path) -> None:
    renderer = Renderer(load_tokenizer(base))
    documents = [document for row in ROWS for document in renderer.render(row.conversation)]
    with without_torchao():
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        tuned = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
    tuned.peft_config["default"].base_model_name_or_path = MODEL_PATH
    length = max(len(document.tokens) for document in documents)
    tokens = torch.zeros((len(documents), length), dtype=torch.int64)
    labels = torch.full_like(tokens, -100)
    for row, document in enumerate(documents):
        tokens[row, : len(document.tokens)] = torch.from_numpy(document.tokens)
        labels[row, : len(document.tokens)][document.trained] = tokens[row, : len(document.tokens)][document.trained]
    adapted = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(adapted, lr=1e-2, betas=(0.9, 0.95))
    for _ in range(MAX_STEPS):
        loss = tuned(tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < LOSS_OF_KNOWING_BY_HEART:
            break
    tuned.save_pretrained(adapter)
