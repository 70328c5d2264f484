"""Text as it comes: stop strings over the borders of tokens, characters of several tokens."""

import itertools

import pytest

from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.text_stream import TextStream, check_stops

TOKENIZER = train_bpe(["the cat sat on the mat, the cat"] * 3, 270)
TEXT = "the mat: naïve 猫 sat 🐈‍⬛ on\n\nthe end"


def told(text: str, *stops: str) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stops, [TOKENIZER.eot])
    parts = [stream.add(token) for token in TOKENIZER.encode(text)]
    return [*parts, stream.finish()], stream


def test_no_character_is_cut_and_none_is_lost():
    parts, stream = told(TEXT)
    assert "".join(parts) == stream.text == TEXT and not stream.stopped
    assert "\ufffd" not in "".join(parts) and parts.count("") > 5  # the bytes of characters wait for one another
    assert all(part == "" for part in told("猫")[0][:2])


@pytest.mark.parametrize("stop", ["naïve", "e m", "t:", "猫 s", "\n\n", "the end", "t"])
def test_text_is_cut_before_a_stop_string(stop):
    parts, stream = told(TEXT, stop)
    assert stream.stopped and "".join(parts) == stream.text == TEXT[: TEXT.index(stop)]
    # What was told at any time is a beginning of that: nothing was told that had to be taken back.
    assert all(stream.text.startswith(text) for text in itertools.accumulate(parts))


def test_the_first_of_several_stops_counts_and_a_beginning_of_one_is_told_in_the_end():
    assert told(TEXT, "sat", "猫")[1].text == TEXT[: TEXT.index("猫")]
    parts, stream = told(TEXT, "the end.")
    assert "".join(parts) == TEXT and not stream.stopped and parts[-1].endswith("the end")


def test_bytes_that_are_no_character_are_told_in_the_end():
    stream = TextStream(TOKENIZER)
    first = TOKENIZER.encode("猫")[0]
    assert stream.add(first) == "" and stream.finish() == "\ufffd"


def test_end_tokens_are_no_text():
    stream = TextStream(TOKENIZER, ends=[TOKENIZER.eot])
    assert stream.add(TOKENIZER.encode("t")[0]) + stream.add(TOKENIZER.eot) + stream.finish() == "t"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="a stop string is empty"):
        check_stops(["a", ""])
