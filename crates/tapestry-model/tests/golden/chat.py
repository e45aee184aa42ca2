#!/usr/bin/env python3
"""Writes chat.json: conversations as `transformers` renders them with templates of the families' kinds.

    python3 chat.py        (needs transformers and jinja2; made with transformers 5.24.0)

The templates are ours; they use what the released ones use: namespaces, slices, loop variables and controls, macros, string and dictionary methods,
whitespace control, filters, tests, `raise_exception`, `strftime_now`, `tojson`, `generation` blocks.
"""
import datetime
import json
import pathlib

from transformers.utils import chat_template_utils

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- The system message comes first, with or without words of its own. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
OLMO = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"""
MARKED = """{%- macro turn(message) -%}
<{{ message.role | upper }}> {{ message | tojson }}
{%- endmacro -%}
{% for message in messages %}
  {% if message.role == 'system' %}
    {% continue %}
  {% endif %}
{{ turn(message) }}
  {% if message.role == 'assistant' %}
    {%- generation -%}
    {{ message.content | replace("a", "A") }}{{ eos_token }}
    {%- endgeneration -%}
  {% endif %}
{{ messages | tojson(indent=2) if loop.last }}
{%- for key, value in message.items() %}[{{ key }}={{ value.split() | join('_') }}]{% endfor %}
{% endfor %}
{{ messages | map(attribute='role') | list | join(',') }}, {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
"""
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "qwen3": QWEN3, "olmo": OLMO, "marked": MARKED}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SAY = lambda role, content: {"role": role, "content": content}
CONVERSATIONS = [
    [SAY("user", "Who wove it?")],
    [SAY("system", "  Answer briefly. "), SAY("user", "Qui l'a tissée ?")],
    [SAY("user", "چه کسی؟"), SAY("assistant", "بافنده <a&b> \"x\" 'y'\n"), SAY("user", "谁？ 😀")],
    [SAY("system", "S"), SAY("user", "a"), SAY("assistant", "<think>\nhm\n</think>\n\nb"), SAY("user", "c"),
     SAY("assistant", "<think>\nha\n</think>\n\nd")],
    [SAY("assistant", "first")],
    [SAY("user", ""), SAY("assistant", " ")],
]


def main():
    class Date(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 4)

    chat_template_utils.datetime = Date
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for asks in (False, True):
                try:
                    (text,), _ = chat_template_utils.render_jinja_template(
                        [messages], chat_template=template, add_generation_prompt=asks, **SPECIAL)
                except Exception as error:
                    text = None
                    print(name, error)
                cases.append({"template": name, "messages": messages, "asks": asks, "text": text})
    path = pathlib.Path(__file__).parent / "chat.json"
    content = {"made_by": "tests/golden/chat.py", "date": [2026, 11, 4], "special": SPECIAL, "templates": TEMPLATES, "cases": cases}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


main()
