"""Hashes of arrays in fixed units and of files, and the file that keeps them."""

import itertools
import zlib

import numpy as np
import pytest
import xxhash

from wsm_jax.errors import UsageError
from wsm_jax.io import hashes


def test_units_are_the_same_in_any_order_and_parts():
    values = np.random.default_rng(0).normal(size=2 * hashes.UNIT + 10).astype(np.float32)
    cuts = [0, 5, hashes.UNIT - 1, hashes.UNIT + 7, 2 * hashes.UNIT + 1, values.size]
    units = hashes.Units({"a/b": values.size})
    found = {}
    for start, stop in reversed(list(itertools.pairwise(cuts))):
        found.update(units.add("a/b", start, values[start:stop]))
    seed = zlib.crc32(b"a/b") << 32
    expected = {
        k: xxhash.xxh3_128_hexdigest(
            values[k * hashes.UNIT : (k + 1) * hashes.UNIT].tobytes(), seed=seed ^ (k * hashes.UNIT)
        )
        for k in range(3)
    }
    assert found == expected and len(found) == hashes.count(values.size)
    assert dict(hashes.Units({"a/b": values.size}).add("a/b", 0, values)) == expected
    assert dict(hashes.Units({"a/c": values.size}).add("a/c", 0, values)) != expected


def test_a_file_is_hashed_without_the_ranges_that_hold_elements(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"head" + b"x" * 10 + b"mid" + b"y" * 5)
    assert hashes.of_file(file, [(4, 14), (17, 22)]) == xxhash.xxh3_128_hexdigest(b"headmid")
    assert hashes.of_file(file) == xxhash.xxh3_128_hexdigest(file.read_bytes())


@pytest.mark.integration
def test_every_flipped_bit_of_the_file_of_hashes_is_noticed(tmp_path):
    hashes.write(tmp_path, {"params": {"w": ["ab12"]}}, {"params/_METADATA": "cd34"})
    assert hashes.read(tmp_path, "params") == {"w": ["ab12"]} and hashes.read(tmp_path, "other") is None
    assert (hashes.load(tmp_path) or hashes.Hashes()).files == {"params/_METADATA": "cd34"}
    whole = (tmp_path / hashes.FILE).read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / hashes.FILE).write_bytes(damaged)
        with pytest.raises(UsageError, match=r"wsm_hashes\.json: no table of hashes"):
            hashes.load(tmp_path)


def test_a_folder_without_hashes_has_none(tmp_path):
    assert hashes.load(tmp_path) is None and hashes.read(tmp_path) is None
