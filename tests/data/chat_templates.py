"""Chat templates in the manner of families of models, and conversations for them."""

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
THINKING = """\
{%- set ns = namespace(last=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set think = '<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and loop.index0 > ns.last else '' -%}
    {{- '<|im_start|>' + message.role + '\\n' + think + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
LLAMA3 = """\
{%- for message in messages %}
    {%- set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {%- set said = head + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set said = bos_token + said %}
    {%- endif %}
    {{- said }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
INST = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('users and assistants take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system turn') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
PHI = """\
{% for message in messages %}
{% if message['content'] is not none %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""
MARKED = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{% else %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
DATED = "{{ strftime_now('%Y') }}{{ messages | tojson }}" + (
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
)

FAMILIES = {
    "chatml": ("qwen", CHATML),
    "thinking": ("qwen", THINKING),
    "marked": ("qwen", MARKED),
    "llama3": ("llama3", LLAMA3),
    "mistral": ("mistral", INST),
    "llama2": ("llama2", INST),
    "unigram": ("unigram", INST),
    "gemma": ("gemma", GEMMA),
    "phi": ("phi", PHI),
}
"""Kinds of tokenizers and templates by family."""

_SAID = [
    "What is the cat?",
    "  it sat on the mat  ",
    "naïve café 中文",
    "def f(x):\n    return x + 1",
    "🎉\u200d!",
    "",
    "<b>1 & 2</b> \"quoted\" 'so'",
    "{{ not }} {% a template %}",
    "\n\nlines\n\n",
    "[brackets] and ▁",
]


def conversations(system: bool = True) -> list[list[dict[str, str]]]:
    """20 conversations of 1 to 3 exchanges; every other one has a system turn, if asked for."""
    found = []
    for number in range(20):
        said = [_SAID[(number + place) % len(_SAID)] or " " for place in range(6)]
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
        turns = turns[: 2 * (number % 3 + 1)]
        before = [{"role": "system", "content": "Be brief."}] if system and number % 2 else []
        found.append([*before, *turns])
    return found
