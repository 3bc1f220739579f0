"""Small chat models for tests: tokenizers of a few hundred tokens, templates that behave like those of real families.

The templates are our own; each shows one habit that real ones have.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from finetune_trainer.architecture import read_shape
from finetune_trainer.weights import expected_weights

# Knows neither tools nor a default system turn (SmolLM2, Llama 3).
CHATML = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Takes tools, parallel calls and tool turns; has a default system turn (Qwen 2.5).
CHATML_WITH_TOOLS = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set system = 'You are helpful.' %}{% set turns = messages %}{% endif -%}
<|im_start|>system
{{ system }}{% if tools %}
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}<|im_end|>
{% for message in turns %}
{%- if message.role == 'tool' -%}
<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Takes one call a turn, strips what is said, writes a date and puts the tools into the first user turn (Llama 3.1).
ONE_CALL_A_TURN = """\
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif -%}
<|head|>system<|/head|>

Today: {{ date_string }}
{{ system }}<|eot|>
{%- for message in turns -%}
{%- if message.tool_calls -%}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif -%}
<|head|>assistant<|/head|>

{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{{- '<|eot|>' }}
{%- else -%}
<|head|>{{ 'ipython' if message.role == 'tool' else message.role }}<|/head|>

{% if loop.first and tools %}{{ tools | tojson }}

{% endif %}{{ message.content | trim }}<|eot|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|head|>assistant<|/head|>

{% endif %}"""

# Puts the tools before the last user turn, shows system words only when nothing follows them, has no generation prompt,
# wants user and assistant in turn and call ids of nine characters (Mistral).
LAST_USER_TURN = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(expected='user') %}
{%- for message in turns if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{%- if message.role != ns.expected %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- set ns.expected = 'assistant' if ns.expected == 'user' else 'user' %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- if message == users[-1] %}
{%- if tools %}[TOOLS] {{ tools | tojson }}[/TOOLS]{% endif -%}
[INST] {{ system + '\n\n' if system and loop.last else '' }}{{ message.content }}[/INST]
{%- else %}[INST] {{ message.content }}[/INST]{% endif %}
{%- elif message.tool_calls %}[CALLS] [
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}
{{- call.function | tojson }}{{ ', ' if not loop.last else '' }}
{%- endfor %}]</s>
{%- elif message.role == 'tool' -%}
[RESULTS] {"content": {{ message.content | tojson }}, "call_id": "{{ message.tool_call_id }}"}[/RESULTS]
{%- else %} {{ message.content | trim }}</s>{% endif %}
{%- endfor %}"""

# Refuses a system turn and any role but user and assistant (Mistral 7B Instruct v0.1 and v0.2).
NO_SYSTEM_TURN = """\
{{- bos_token }}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message.role == 'user' %}[INST] {{ message.content }} [/INST]{% else %} {{ message.content }}</s>{% endif %}
{%- endfor %}"""

SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "[INST]", "[/INST]"]
VOCABULARY_SIZE = 512


@lru_cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["The weather in Paris is sunny; call get_weather for the city of Paris.\n\n"], trainer
    )
    return tokenizer.to_str()


def write_tokenizer(directory: Path, chat_template: str | None = CHATML, special_tokens: tuple[str, ...] = ()) -> None:
    """Write a byte-level tokenizer with a chat template into a directory, with more special tokens where wanted."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": chat_template,
        "tokenizer_class": "LlamaTokenizer",
        "additional_special_tokens": list(special_tokens),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_chat_model(directory: Path, chat_template: str | None = CHATML, **config: Any) -> None:
    """Write a whole model of two layers in the Hugging Face layout; its weights are zeros."""
    write_tokenizer(directory, chat_template)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(settings | config), encoding="utf-8")
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_weights(read_shape(directory)).items()}
    save_file(weights, directory / "model.safetensors")
