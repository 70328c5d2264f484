"""Answers given their prompts: the loss by hand, what is left out, where prompt and answer meet, what is refused."""

import gzip
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import drawn
from wsm_jax import UsageError
from wsm_jax.config import ModelConfig
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.evaluation import answers
from wsm_jax.models import model as model_lib
from wsm_jax.parallel import sharding

CONTEXT = 256
ITEMS = [
    ("Where is it?\n\n", "Here, in the café."),
    ("", "Naïve \U0001f642 words\n"),
    ("A long prompt of many words. " * 20, "Yes."),
    ("wor", "ds of one word"),  # where a token reaches over the end of the prompt
    ("many words " * 200, "left out"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["A long prompt of many words. Where is it?\n\nHere, in words. one word\n\n\nwords"] * 3, 300)


def write(path, items):
    path.write_text("".join(json.dumps({"prompt": p, "answer": a, "more": 1}) + "\n" for p, a in items))
    return path


def test_the_loss_is_the_sum_of_log_softmax_over_the_tokens_of_the_answer(tokenizer, tmp_path):
    shape = ModelConfig(layers=1, d_model=16, heads=2, context=CONTEXT, vocab_size=tokenizer.vocab_size)
    model, mesh = model_lib.build(shape), sharding.make_mesh()
    params = drawn(model)
    file = write(tmp_path / "a.jsonl", ITEMS)
    found = answers.make_evaluator(file, tokenizer, model, mesh, batch_size=2)(params)

    apply, expected, counts = jax.jit(model.apply), [], []
    for tokens in answers.encode(tokenizer, [answers.Item(*item) for item in ITEMS[:4]]):
        row = np.full(CONTEXT, 7)  # what stands behind the answer counts for nothing
        row[: len(tokens.ids)] = [tokenizer.eot, *tokens.ids[:-1]]
        logits = np.asarray(apply(params, jnp.asarray(row)[None])[0], np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        places = range(tokens.prompt, len(tokens.ids))
        expected.append(-sum(logs[place, tokens.ids[place]] for place in places))
        counts.append(len(places))
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.tokens.tolist() == counts
    assert found.bytes.tolist() == [len(answer.encode()) for _, answer in ITEMS[:4]]
    assert found.left_out == 1
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / found.bytes.sum())
    rates = found.nats / math.log(2) - found.bits_per_byte * found.bytes
    assert found.bits_per_byte_stderr == pytest.approx(math.sqrt(4 / 3 * (rates**2).sum()) / found.bytes.sum())

    limit = sum(len(tokens.ids) for tokens in answers.encode(tokenizer, [answers.Item(*item) for item in ITEMS[:2]]))
    first = answers.make_evaluator(file, tokenizer, model, mesh, batch_size=2, limit_tokens=limit)(params)
    np.testing.assert_allclose(first.nats, expected[:2], rtol=1e-5)
    assert first.left_out == 1 and first.data_hash != found.data_hash


def test_the_tokens_that_count_stand_for_the_answer_alone(tokenizer):
    items = [answers.Item(*item) for item in [*ITEMS, ("it?\n\n", "Here"), ("caf\u00e9", " \u00e9"), ("a ", " b")]]
    for item, tokens in zip(items, answers.encode(tokenizer, items), strict=True):
        assert tokenizer.byte_count(np.asarray(tokens.ids[tokens.prompt :])) == len(item.answer.encode())
        assert tokenizer.decode(tokens.ids[: tokens.prompt]) == item.prompt
        assert tokenizer.decode(tokens.ids[tokens.prompt :]) == item.answer
    natural, apart = answers.encode(tokenizer, [answers.Item("it?\n\n", "Here"), answers.Item("wor", "ds")])
    # In a document the line ends before a word are two tokens; the prompt alone would end in another one.
    assert natural.ids == tokenizer.encode("it?\n\nHere") != tokenizer.encode("it?\n\n") + tokenizer.encode("Here")
    assert apart.ids == tokenizer.encode("wor") + tokenizer.encode("ds") != tokenizer.encode("words")


def test_rows_are_short_where_items_are_and_hold_each_item_once():
    items = [answers.Tokens(list(range(1, size + 1)), 2) for size in (5, 128, 129, 400, 512, 3, 64)]
    made = list(answers.batches(items, 0, answers.lengths(512, 1), 1))
    assert [batch["inputs"].shape for batch in made] == [(4, 128), (2, 256), (1, 512), (1, 512)]
    for number, item in enumerate(items):
        targets = np.concatenate([batch["targets"][batch["document"] == number] for batch in made])
        assert targets.tolist() == item.ids[2:]
    assert answers.lengths(128, 1) == [128] and answers.lengths(512, 2) == [256, 512]
    assert answers.lengths(1000, 1) == [1000]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "holds no answers"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "line 2 has no string field 'answer' .it has: prompt"),
        ('{"prompt": 1, "answer": "b"}\n', "line 1 has no string field 'prompt'"),
        ('["a", "b"]\n', "line 1 has no string field 'prompt' .it has: list"),
        ('{"prompt": "a", "answer": ""}\n', "line 1: the answer is empty"),
        ('{"prompt": "a"\n', "line 1 is not JSON"),
        ('{"prompt": "\\ud800", "answer": "b"}\n', "line 1: prompt is not Unicode text"),
    ],
)
def test_a_file_of_something_else_is_refused_by_line(tmp_path, content, named):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UsageError, match=rf"^\S*a\.jsonl,? {named}"):
        answers.read(tmp_path / "a.jsonl")


def test_a_file_that_is_not_there_or_is_cut_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"b\.jsonl is not there"):
        answers.read(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "answer": "b"}\n' * 99)[:-9])
    with pytest.raises(UsageError, match=r"c\.jsonl\.gz cannot be read: Compressed file ended"):
        answers.read(tmp_path / "c.jsonl.gz")


def test_answers_none_of_which_fits_are_refused(tokenizer, tmp_path):
    model = model_lib.build(ModelConfig(layers=1, d_model=16, heads=2, context=8, vocab_size=tokenizer.vocab_size))
    file = write(tmp_path / "a.jsonl", ITEMS[2::2])
    with pytest.raises(UsageError, match="none of its 2 answers fits the context of 8 tokens with its prompt; the sh"):
        answers.make_evaluator(file, tokenizer, model, sharding.make_mesh(), batch_size=2)
