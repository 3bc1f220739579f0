"""A tokenizer, and what renders conversations with it."""

import pytest
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.render import Renderer
from finetune_trainer.data.template import load_tokenizer
from tests import chat_models


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    chat_models.write_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def renderer(tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return Renderer(tokenizer)
