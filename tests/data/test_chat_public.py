"""Chat templates beside public tokenizers; the texts expected are what transformers 5.24 gave."""

import json

import pytest

from wsm_jax.data import chat
from wsm_jax.errors import UsageError

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'skip' %}
{% continue %}
    {% else %}
        {%- generation %}
{{ '<|assistant|>\n' + message['content'] | trim }}
        {%- endgeneration %}
    {% endif %}
{% endfor %}
{{ messages | tojson }}
{{ '<|assistant|>' if add_generation_prompt }}"""
MESSAGES = [
    {"role": "user", "content": "1 < 2 & 'ä'?"},
    {"role": "skip", "content": "-"},
    {"role": "assistant", "content": " yes "},
]
EXPECTED = {
    SMOLLM: "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n1 < 2 & 'ä'?<|im_end|>\n<|im_start|>skip\n-"
    "<|im_end|>\n<|im_start|>assistant\n yes <|im_end|>\n<|im_start|>assistant\n",
    ZEPHYR: "<|user|>\n1 < 2 & 'ä'?</s>\n<|assistant|>\nyes"
    '[{"role": "user", "content": "1 < 2 & \'ä\'?"}, {"role": "skip", "content": "-"}, '
    '{"role": "assistant", "content": " yes "}]\n<|assistant|>',
}


def folder(tmp_path, **config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("template", EXPECTED, ids=["smollm", "zephyr"])
def test_a_conversation_is_written_as_transformers_writes_it(tmp_path, template):
    place = folder(tmp_path, chat_template=template, eos_token={"content": "</s>"}, bos_token="<s>")
    assert chat.load_template([place]).render(MESSAGES) == EXPECTED[template]


def test_the_file_of_its_own_goes_before_and_of_several_the_default_counts(tmp_path):
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]
    place = folder(tmp_path, chat_template=named, bos_token="<s>")
    assert chat.load_template([tmp_path / "none", place]).render(MESSAGES) == "D<s>"
    (place / "chat_template.jinja").write_text("{{ strftime_now('%Y')|length }}")
    assert chat.load_template([place]).render(MESSAGES) == "4"


def test_what_ends_an_answer(tmp_path):
    place = folder(tmp_path, eos_token="<|im_end|>")
    assert chat.end_tokens(place) == ([], ["<|im_end|>"])
    (place / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert chat.end_tokens(place) == ([2, 7], ["<|im_end|>"])
    assert chat.end_tokens(tmp_path / "none") == ([], [])
    (place / "generation_config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"generation_config.json is no JSON object"):
        chat.end_tokens(place)
