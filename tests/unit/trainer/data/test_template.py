"""What is found out about a chat template, and which tokenizers are refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Sequence, Split

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


def _split(regex: str) -> PreTokenizer:
    return Sequence([Split(Regex(regex), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


# How the repositories of the supported models name the class of their tokenizer, and how tokenizer.json splits words.
TOKENIZERS: dict[str, tuple[str, PreTokenizer]] = {
    "SmolLM2": ("GPT2Tokenizer", Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])),
    "Llama 3": ("PreTrainedTokenizerFast", _split(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+")),
    "Qwen 2.5": ("Qwen2Tokenizer", _split(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+(?!\S)|\s+")),
    "Mistral": ("LlamaTokenizer", Metaspace(prepend_scheme="first", split=False)),
}


@pytest.mark.parametrize("model", TOKENIZERS)
def test_a_tokenizer_is_what_its_file_says_whatever_its_class_is_called(model: str, tmp_path: Path) -> None:
    # NB: transformers 5 builds some classes anew, with a pre-tokenizer of their own, and SmolLM2 loses its digits.
    class_name, pre_tokenizer = TOKENIZERS[model]
    chat_models.write_tokenizer(tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    written["pre_tokenizer"] = json.loads(pre_tokenizer.__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": class_name, "add_prefix_space": False, "add_bos_token": True, "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = json.loads(load_tokenizer(tmp_path).backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "model", "decoder", "added_tokens"):
        assert loaded[part] == written[part]


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


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_that_reaches_for_python_is_refused(tmp_path: Path, escape: str) -> None:
    chat_models.write_tokenizer(tmp_path, escape)
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TrainerError) as error:
        ChatTemplate(tokenizer)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
