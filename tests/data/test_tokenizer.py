"""Vocabularies trained and read: reversible, deterministic, and deaf to special tokens spelled out in documents."""

import json
import pathlib
import random
import subprocess
import sys
import sysconfig
import textwrap
import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from wsm_jax.data.tokenizer import EOT, LONGEST_WORD, Tokenizer, load_tokenizer, train_bpe
from wsm_jax.errors import UsageError

_LIBRARY = pathlib.Path(sysconfig.get_path("stdlib"))
_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((_LIBRARY / "json").glob("*.py"))]


@pytest.fixture(scope="module")
def bpe(texts) -> Tokenizer:
    return train_bpe(texts, 600)


def test_size_end_of_text_and_compression(bpe, texts):
    assert bpe.vocab_size == 600 and bpe.decode([bpe.eot]) == EOT
    ids = bpe.encode(texts[0])
    assert max(ids) < 600 and bpe.eot not in ids and len(ids) < 0.5 * len(texts[0].encode())


@given(st.text() | st.lists(st.sampled_from([EOT, " ", "\n", "a", "<|"]), max_size=6).map("".join))
def test_any_text_comes_back_and_never_ends_itself(bpe, text):
    ids = bpe.encode(text)
    assert bpe.eot not in ids
    assert bpe.decode(ids) == text
    assert bpe.encode_batch([text, text]) == [ids, ids]


@given(st.text(), st.integers(0, 9))
def test_bytes_of_tokens_are_exact_within_a_character_too(bpe, text, cut):
    ids = np.asarray(bpe.encode(text), np.int64)
    assert bpe.byte_count(ids) == len(text.encode()) == bpe.byte_count(ids[:cut]) + bpe.byte_count(ids[cut:])


def test_a_vocabulary_that_is_not_of_bytes_counts_those_of_the_text_it_spells():
    model = tokenizers.Tokenizer(models.WordLevel({"caf\u00e9": 0, "a": 1, EOT: 2}, unk_token=EOT))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    words = Tokenizer(model)
    assert words.token_bytes is None
    assert words.byte_count(np.asarray(words.encode("caf\u00e9 a"))) == len("caf\u00e9 a".encode())


def test_saved_and_loaded_is_the_same(bpe, texts, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(place)
        assert (loaded.hash, loaded.vocab_size, loaded.eot) == (bpe.hash, bpe.vocab_size, bpe.eot)
        assert loaded.encode_batch(texts) == bpe.encode_batch(texts)


def test_training_is_deterministic_across_processes(bpe):
    code = f"""
        import pathlib
        from wsm_jax.data.tokenizer import train_bpe
        paths = sorted(pathlib.Path("{_LIBRARY}/json").glob("*.py"))
        print(train_bpe([path.read_text(encoding="utf-8") for path in paths], 600).hash)
    """
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == bpe.hash


def test_few_texts_give_a_small_vocabulary():
    small = train_bpe(["aa aa"], 4096)
    assert 257 < small.vocab_size < 265
    with pytest.raises(UsageError, match="bpe:256 is too small"):
        train_bpe([], 256)
    with pytest.raises(UsageError, match="bpe:100000000000000000000 is too large"):
        train_bpe([], 10**20)


@pytest.mark.integration
def test_a_word_without_an_end_is_cut_and_ordinary_text_is_not(texts):
    """Training took 21 seconds for 200,000 letters in one word, and four times as long for twice as many."""
    dna = "".join(random.Random(0).choices("ACGT", k=200_000))
    clock = time.process_time()
    assert train_bpe([dna], 4096).vocab_size == 4096
    pieces = [dna[start : start + LONGEST_WORD] for start in range(0, len(dna), LONGEST_WORD)]
    assert train_bpe([dna], 300).hash == train_bpe(pieces, 300).hash
    assert time.process_time() - clock < 15
    plain = tokenizers.Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=2,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    long = [*texts, "a" * LONGEST_WORD + " " + "é" * (LONGEST_WORD // 2 - 1)]
    plain.train_from_iterator(iter(long), trainer=trainer)
    assert Tokenizer(plain).hash == train_bpe(long, 600).hash


def test_gpt2_pair_of_files(tmp_path):
    # GPT-2's form in small: a map of the byte alphabet, one merge and the end-of-text token.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {"th": 256, EOT: 257}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\n")
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.eot) == (258, 257)
    assert loaded.encode("the") == [256, vocabulary["e"]]
    assert loaded.decode(loaded.encode(f"thé {EOT}")) == f"thé {EOT}" and 257 not in loaded.encode(EOT)


def test_end_of_text_listed_as_ordinary_token_is_not_found_in_text(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"][0]["special"] = False
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path)
    assert loaded.eot not in loaded.encode(f"a{EOT}b")
    assert len(loaded.encode("x1" * 50)) > 3


@pytest.mark.skipif(not _SHARED.is_dir(), reason="../shared/data is not beside this checkout")
def test_public_vocabularies():
    gpt2 = load_tokenizer(_SHARED / "gpt2")
    assert (gpt2.vocab_size, gpt2.eot) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    neox = load_tokenizer(_SHARED / "gpt_neox")
    assert (neox.vocab_size, neox.eot) == (50280, 50279)
    for one in (gpt2, neox):
        text = f"def f(x):\n        return x{EOT} + 1\n"
        assert one.decode(one.encode(text)) == text and one.eot not in one.encode(text)


def test_errors(tmp_path):
    with pytest.raises(UsageError, match=r"neither a tokenizer\.json, nor a folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        load_tokenizer(tmp_path)
    plain = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"tokenizer\.json has no end-of-text token; its vocabulary needs one of"):
        load_tokenizer(tmp_path)
