"""Token stores in a bucket: made once, fetched by others, equal to those of a disk."""

import numpy as np
import pytest

from tests.buckets import BUCKET
from wsm_jax import UsageError
from wsm_jax.config import DataConfig
from wsm_jax.data import tokens

pytest_plugins = ["tests.buckets"]


def test_tokens_in_a_bucket_are_made_once_and_are_those_of_a_disk(bucket, tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} green bottles, hanging on the wall. " * 9)
    source = {"source": f"text:{tmp_path / 'text'}", "tokenizer": "bpe:300", "validation_fraction": 0.2}
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    made = tokens.prepare(DataConfig(**source, test_fraction=0.2, store=f"gs://{BUCKET}/data"))
    here = tokens.prepare(DataConfig(**source, test_fraction=0.2, store=str(tmp_path / "data")))
    assert made.hash == here.hash
    monkeypatch.setattr(tokens, "write_store", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    again = tokens.prepare(DataConfig(**source, test_fraction=0.2, store=f"gs://{BUCKET}/data"))
    (there, _), (store, _) = again.stable[0], here.stable[0]
    assert again.hash == made.hash and str(there.path).startswith(f"gs://{BUCKET}/data/tokens/")
    for split in tokens.SPLITS:
        np.testing.assert_array_equal(there.tokens(split), store.tokens(split))
    marker = next(name for name in bucket.names("data/tokens/") if name.endswith("wsm_published.json"))
    del bucket.objects[f"data/tokens/{marker}"]  # what has none is not there
    with pytest.raises(UsageError, match="nothing whole is there"):
        tokens.TokenStore(there.path)
