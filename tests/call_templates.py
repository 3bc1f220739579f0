"""Chat templates that write calls as four families of models do.

The templates are our own. What they write is the published format, word for word where calls are concerned:

* Llama 3.1: https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md
* Qwen 2.5: https://qwen.readthedocs.io/en/latest/framework/function_call.html
* Mistral, tokenizer version 3: https://github.com/mistralai/mistral-common/blob/main/docs/usage/tools.md
* Hermes 2 Pro: https://github.com/NousResearch/Hermes-Function-Calling
"""

from finetune_trainer.toolcalls import CallStyle

LLAMA_3_1 = """\
{{- bos_token -}}
{%- set has_system = messages[0].role == 'system' -%}
<|start_header_id|>system<|end_header_id|>

{% if tools %}Environment: ipython
{% endif %}Cutting Knowledge Date: December 2023
Today Date: {{ date_string }}

{{ messages[0].content | trim if has_system else '' }}<|eot_id|>
{%- for message in (messages[1:] if has_system else messages) -%}
<|start_header_id|>{{ 'ipython' if message.role == 'tool' else message.role }}<|end_header_id|>

{% if loop.first and tools -%}
Given the following functions, please respond with a JSON for a function call with its proper arguments that best \
answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. Do not use \
variables.

{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{{ message.content | trim }}
{%- elif message.tool_calls -%}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}
{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- elif message.role == 'tool' -%}
{{ message.content | tojson }}
{%- else -%}
{{ message.content | trim }}
{%- endif -%}
<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""

_CHATML_WITH_CALLS = """\
{%- for message in (messages[1:] if has_system else messages) %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>ANSWERER' if loop.previtem is not defined or loop.previtem.role != 'tool' else '' }}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.nextitem is not defined or loop.nextitem.role != 'tool' else '' }}
{%- elif message.tool_calls %}
{{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}
"""

QWEN_2_5 = """\
{%- set has_system = messages[0].role == 'system' -%}
<|im_start|>system
{{ messages[0].content if has_system else 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
{%- if tools %}

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>{% endif %}<|im_end|>
""" + _CHATML_WITH_CALLS.replace("ANSWERER", "user")

HERMES = """\
{%- set has_system = messages[0].role == 'system' -%}
{{ bos_token }}<|im_start|>system
{{ messages[0].content + '\\n' if has_system else '' }}
{%- if tools -%}
You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. \
You may call one or more functions to assist with the user query. Don't make assumptions about what values to plug \
into functions. Here are the available tools: <tools> {% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools> For each function call return a json object with function name and arguments within \
<tool_call></tool_call> XML tags as follows:
<tool_call>
{"name": <function-name>, "arguments": <args-dict>}
</tool_call>{% endif %}<|im_end|>
""" + _CHATML_WITH_CALLS.replace("ANSWERER", "tool")

MISTRAL_V3 = """\
{%- set has_system = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}
{{ bos_token }}
{%- for message in turns -%}
{%- if message.role == 'user' -%}
{%- if tools and message == users[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
[INST] {{ messages[0].content + '\\n\\n' if has_system and loop.last else '' }}{{ message.content }}[/INST]
{%- elif message.tool_calls -%}
[TOOL_CALLS] [
{%- for call in message.tool_calls -%}
{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{{- ', ' if not loop.last else '' }}
{%- endfor -%}
]{{ eos_token }}
{%- elif message.role == 'tool' -%}
[TOOL_RESULTS] {"content": {{ message.content | tojson }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- else %} {{ message.content }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
"""

# The template, the tokens that it marks turns with, and how its calls are read.
FAMILIES: dict[str, tuple[str, tuple[str, ...], CallStyle]] = {
    "Llama 3.1": (LLAMA_3_1, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), CallStyle.LLAMA),
    "Qwen 2.5": (QWEN_2_5, ("<|im_start|>", "<|im_end|>"), CallStyle.HERMES),
    "Mistral": (
        MISTRAL_V3,
        ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
        CallStyle.MISTRAL,
    ),
    "Hermes": (HERMES, ("<|im_start|>", "<|im_end|>"), CallStyle.HERMES),
}
