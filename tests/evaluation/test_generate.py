"""Texts after prompts: the same in pieces as whole, and what ends them."""

from typing import Any

import jax
import numpy as np
import pytest

from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import decode, generate, prompts
from wsm_jax.evaluation.generate import Settings
from wsm_jax.evaluation.sampling import Sampling
from wsm_jax.models import model
from wsm_jax.models.llama import LlamaFields

TOKENIZER = train_bpe(["the cat sat on the mat, the cat"] * 3, 270)
CONTEXT = 32
FIELDS = LlamaFields(layers=1, d_model=32, heads=2, context=CONTEXT, vocab_size=TOKENIZER.vocab_size + 3)
TEXTS = ["the cat", "", "mat"]
DRAWN = Settings(max_tokens=12, sampling=Sampling(1.0, seed=4))


@pytest.fixture(scope="module")
def maker() -> decode.Decoder:
    built = model.build(FIELDS)
    params = jax.jit(built.init)(jax.random.key(0))
    return decode.decoder(built, params, vocab_size=TOKENIZER.vocab_size)


def texts(maker: Any, settings: Settings, batch_size: int = 8) -> list[generate.Completion]:
    return generate.generate(maker, TOKENIZER, prompts.encode(TEXTS, TOKENIZER), settings, batch_size)


@pytest.mark.integration
def test_pieces_make_up_the_whole_and_batches_change_nothing(maker):
    found = texts(maker, DRAWN)
    assert {one.finish for one in found} <= {"length", "end"} and found[1].finish == "length"
    for one in found:
        assert len(one.tokens) == 12 or one.finish == "end"
        assert one.text == TOKENIZER.decode([token for token in one.tokens if token != TOKENIZER.eot])
    assert texts(maker, DRAWN, batch_size=2) == found
    pieces = list(generate.stream(maker, TOKENIZER, prompts.encode(TEXTS, TOKENIZER), DRAWN))
    assert sum(piece.number == 1 for piece in pieces) == 3  # the token of the prompt's pass, a chunk, and a half
    for number, one in enumerate(found):
        own = [piece for piece in pieces if piece.number == number]
        assert "".join(piece.text for piece in own) == one.text
        assert [piece.finish for piece in own][:-1] == [""] * (len(own) - 1) and own[-1].finish == one.finish


@pytest.mark.integration
def test_what_ends_a_text(maker):
    free = texts(maker, DRAWN)
    token = free[0].tokens[5]
    place = free[0].tokens.index(token) + 1
    ended = texts(maker, Settings(12, DRAWN.sampling, ends=(token,)))[0]
    assert (ended.finish, ended.tokens) == ("end", free[0].tokens[:place])
    assert ended.text == TOKENIZER.decode(free[0].tokens[: place - 1])

    stop = free[2].text[3:5]
    stopped = texts(maker, Settings(12, DRAWN.sampling, stop=("nowhere to be found", stop)))[2]
    assert (stopped.finish, stopped.text) == ("stop", free[2].text[: free[2].text.index(stop)])
    assert TOKENIZER.decode(stopped.tokens).count(stop) == 1 and len(stopped.tokens) < 12

    (full,) = generate.generate(maker, TOKENIZER, [[1] * (CONTEXT - 3)], Settings(max_tokens=50))
    assert (full.finish, len(full.tokens)) == ("context", 3) or full.finish == "end"


def test_a_prompt_begins_as_a_document_and_must_fit(maker):
    (ids,) = prompts.encode(["the cat"], TOKENIZER)
    assert ids == [TOKENIZER.eot, *TOKENIZER.encode("the cat")]
    long = [[1], [1] * (CONTEXT + 4)]
    with pytest.raises(UsageError, match=f"prompt 2 has 36 tokens, 5 more than leave room .* context of {CONTEXT}"):
        generate.generate(maker, TOKENIZER, long)
    with pytest.raises(UsageError, match="the prompt has no token"):
        prompts.check_fit([[]], CONTEXT)
    with pytest.raises(UsageError, match="prompt 1 is a conversation, which needs --chat"):
        prompts.encode([[{"role": "user", "content": "a"}]], TOKENIZER)
    with pytest.raises(UsageError, match="prompt 1 is not Unicode"):
        prompts.encode(["\ud800"], TOKENIZER)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="max_tokens is 0; it must be at least 1"):
        Settings(max_tokens=0)
    with pytest.raises(UsageError, match="a stop string is empty"):
        Settings(stop=("a", ""))


def test_a_family_that_keeps_nothing_is_refused(maker):
    def forward(params: Any, tokens: jax.Array, *, positions: Any = None, segments: Any = None) -> Any:
        return maker.model.hidden(params, tokens)

    plain = model.Model(FIELDS, maker.model.init, forward, maker.model.leaves)
    other = decode.Decoder(plain, maker.params, maker.mesh, maker.rules, maker.vocab_size)
    with pytest.raises(UsageError, match="models of family llama keep nothing of tokens before"):
        next(decode.tokens_after(other, [[1]], [0], Sampling(), ends=[], limits=[1], ended=np.zeros(1, bool)))
