"""What is found out about a chat template, and which tokenizers are refused."""

import json
from pathlib import Path

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.template import ChatTemplate, TemplateStyle, load_tokenizer
from finetune_trainer.errors import TrainerError
from tests import chat_models

STYLES = {
    "a template that knows only turns": (chat_models.CHATML, TemplateStyle(True, False, False, True)),
    "a template that takes tools": (chat_models.CHATML_WITH_TOOLS, TemplateStyle(True, True, True, True)),
    "a template that takes one call a turn": (chat_models.ONE_CALL_A_TURN, TemplateStyle(True, True, False, True)),
    "a template that shows system words only at the end and refuses tool turns without a call": (
        chat_models.LAST_USER_TURN,
        TemplateStyle(False, True, True, False),
    ),
    "a template that refuses system and tool turns": (
        chat_models.NO_SYSTEM_TURN,
        TemplateStyle(False, False, False, False),
    ),
}


@pytest.mark.parametrize("case", STYLES)
def test_what_a_template_takes_is_found_out_by_trying(case: str, tmp_path: Path) -> None:
    template, expected = STYLES[case]
    chat_models.write_tokenizer(tmp_path, template)
    assert ChatTemplate(load_tokenizer(tmp_path)).style == expected


def test_a_tokenizer_that_cuts_texts_is_told_not_to(tmp_path: Path) -> None:
    chat_models.write_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert len(load_tokenizer(tmp_path).backend_tokenizer.encode("one two three four five six seven").ids) > 4


def test_a_base_model_without_a_chat_template_is_refused_with_advice(tmp_path: Path) -> None:
    chat_models.write_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(TrainerError) as error:
        load_tokenizer(tmp_path)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert "no chat template" in error.value.message
    assert "-Instruct" in error.value.message


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as error:
        load_tokenizer(tmp_path)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert "tokenizer.json" in error.value.message


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    chat_models.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(TrainerError) as error:
        load_tokenizer(tmp_path)
    assert error.value.reason is Reason.MODEL_UNAVAILABLE
    assert str(tmp_path) in error.value.message


def test_a_template_that_cannot_write_a_question_and_its_answer_is_refused(tmp_path: Path) -> None:
    chat_models.write_tokenizer(tmp_path, "{{ raise_exception('never') }}")
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TrainerError) as error:
        ChatTemplate(tokenizer)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
