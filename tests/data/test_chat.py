"""Chat templates, and conversations as tokens: what is rendered, what is learnt, what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from wsm_jax.config import DataConfig
from wsm_jax.data import chat, conversations
from wsm_jax.data.chat import ChatTemplate, Part
from wsm_jax.data.tokenizer import EOT, load_tokenizer, train_bpe
from wsm_jax.data.tokens import prepare
from wsm_jax.errors import UsageError

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ bos_token }}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}[{{ m.content | upper }}]{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def template(source, **special):
    return ChatTemplate(source, special, Path("chat_template.jinja"))


def test_a_conversation_is_rendered_and_its_responses_are_told_apart():
    chatml = template(CHATML)
    turns = [f"{START}{m['role']}\n{m['content']}{END}\n" for m in TALK]
    assert chatml.render(TALK, prompt=False) == "".join(turns)
    assert chatml.render(TALK[:1]) == f"{turns[0]}{START}assistant\n"
    opening = f"{START}assistant\n"
    assert chatml.parts(TALK) == [
        Part(turns[0] + opening, False),
        Part(f"Two.{END}\n", True),
        Part(turns[2] + opening, False),
        Part(f"Yes.{END}\n", True),
    ]


def test_what_a_template_marks_is_the_response():
    marked = template(MARKED, bos_token="<s>", eos_token="</s>")
    assert marked.render(TALK[:2], prompt=False) == "[HOW MANY?]<s>Two.</s>"
    assert marked.parts(TALK[:2]) == [Part("[HOW MANY?]<s>", False), Part("Two.</s>", True)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "cannot be read: "),
        ("{{ raise_exception('no system role') }}", "refuses the messages: no system role"),
        ("{{ messages[9].content }}", "refuses the messages: "),
        ("{{ messages.append(1) }}", "refuses the messages: .*append"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages: .*unsafe"),
        ("{{ messages | length }}{{ messages[-1].content }}", "renders a message differently"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(source, words):
    with pytest.raises(UsageError, match=words) as caught:
        template(source).parts(TALK)
    assert "\n" not in str(caught.value)


def test_a_template_is_found_beside_the_tokenizer(tmp_path):
    assert chat.find_template([tmp_path]) is None
    with pytest.raises(UsageError, match="no chat template beside the tokenizer"):
        chat.load_template([tmp_path])
    config = {"chat_template": MARKED, "eos_token": {"content": END}, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = chat.load_template([tmp_path / "nowhere", tmp_path])
    assert found.render(TALK[:2]) == f"[HOW MANY?]<s>Two.{END}"
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    later = chat.load_template([tmp_path])
    assert later.render(TALK[:1]).startswith(START) and later.hash != found.hash


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    train_bpe(["How many? Two. Sure? Yes. assistant user"] * 9, 300).save(folder / "tokenizer.json")
    model = json.loads((folder / "tokenizer.json").read_text())
    names = {token["content"] for token in model["added_tokens"]}
    first = 1 + max(model["model"]["vocab"].values())
    for number, token in enumerate((START, END)):
        assert token not in names
        entry = {"id": first + number, "content": token, "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        model["added_tokens"].append(entry | flags)
    (folder / "tokenizer.json").write_text(json.dumps(model))
    return folder


def test_marks_are_tokens_and_the_prompt_is_tokenised_by_itself(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    ((ids, learnt, size),) = conversations.Encoder(tokenizer, template(CHATML))([json.dumps(TALK)])
    assert tokenizer.decode(ids) == template(CHATML).render(TALK, prompt=False)
    marks = [tokenizer.encode_marked(mark)[0] for mark in (START, END)]
    assert [ids.count(mark) for mark in marks] == [4, 4] and len(tokenizer.encode_marked(START)) == 1
    assert len(tokenizer.encode(START)) > 1  # in a document it is text
    assert tokenizer.decode([i for i, one in zip(ids, learnt, strict=True) if one]) == f"Two.{END}\nYes.{END}\n"
    assert size == len(f"Two.{END}\nYes.{END}\n")


def test_without_a_template_a_prompt_and_its_response_lie_between_end_of_texts(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    encode = conversations.Encoder(tokenizer, None)
    ((ids, learnt, size),) = encode([json.dumps(TALK[:2])])
    assert tokenizer.decode(ids) == f"{EOT}How many?Two.{EOT}" and size == 4
    assert tokenizer.decode([i for i, one in zip(ids, learnt, strict=True) if one]) == f"Two.{EOT}"
    with pytest.raises(UsageError, match="need a chat template"):
        encode([json.dumps(TALK)])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "neither messages nor prompt and response"),
        ('{"prompt": "a"}', r"neither messages nor prompt and response \(it has: prompt\)"),
        ('{"prompt": "a", "response": 1}', "needs the strings role and content"),
        ('{"prompt": "a", "response": ""}', "has no response"),
        ('{"messages": {}}', "no list of objects"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "has no response"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "unknown role 'robot'; known: system, user, assistant"),
        ('{"prompt": "\\ud800", "response": "a"}', "not Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    file = tmp_path / "talk.jsonl.gz"
    file.write_bytes(gzip.compress(f'{{"prompt": "a", "response": "b"}}\n{line}\n'.encode()))
    with pytest.raises(UsageError, match=words) as caught:
        list(conversations.read([(file.name, file)]))
    assert f"{file} line 2" in str(caught.value)


def test_conversations_have_a_store_of_their_own(tmp_path, vocabulary):
    lines = [json.dumps({"prompt": f"How many {n}?", "response": "Two." * (n % 7 + 1)}) for n in range(60)]
    named = [line.replace("response", "completion") if n % 2 else line for n, line in enumerate(lines)]
    (tmp_path / "talk.jsonl").write_text("\n".join(named))
    settings = {"tokenizer": str(vocabulary), "store": str(tmp_path / "store"), "validation_fraction": 0.2}
    config = DataConfig(source=f"chat:{tmp_path / 'talk.jsonl'}", test_fraction=0.2, **settings)
    corpus = prepare(config)
    store = corpus.stable[0][0]
    assert corpus.is_packed and store.has_learnt
    total = 0
    for split in ("train", "validation", "test"):
        tokens, learnt, offsets = store.tokens(split), store.learnt(split), store.offsets(split)
        total += len(offsets) - 1
        for start, stop, size in zip(offsets[:-1], offsets[1:], store.document_bytes(split), strict=True):
            response = corpus.tokenizer.decode(tokens[start:stop][learnt[start:stop] > 0]).removesuffix(EOT)
            assert response in [json.loads(line)["response"] for line in lines] and len(response) == size
    assert total == len(lines)
    again = prepare(config)
    assert again.hash == corpus.hash
    (vocabulary / "chat_template.jinja").write_text(CHATML)
    try:
        assert prepare(config).hash != corpus.hash
    finally:
        (vocabulary / "chat_template.jinja").unlink()
    (store.path / "train" / "learnt.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"learnt\.bin is damaged"):
        prepare(config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokenizer": "bpe:300"}, "needs the tokenizer of the model that learns it"),
        ({"source": "chat:{0},text:{0}"}, "do not mix"),
        ({"source": "chat:{0}.nowhere"}, "chat:.* matches nothing"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, vocabulary, fields, words):
    file = tmp_path / "talk.jsonl"
    file.write_text('{"prompt": "a", "response": "b", "text": "c"}\n' * 9)
    settings = {"source": "chat:{0}", "tokenizer": str(vocabulary), "store": str(tmp_path / "store")} | fields
    settings["source"] = settings["source"].format(file)
    with pytest.raises(UsageError, match=words):
        prepare(DataConfig(**settings))
