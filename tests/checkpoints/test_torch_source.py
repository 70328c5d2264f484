"""Files of ``torch.save`` against the same tensors in safetensors, and files that are not what they say.

PyTorch wrote both; see tests/golden/make_torch.py.
"""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from wsm_jax.checkpoints import inspection, storage, torch_file, torch_source
from wsm_jax.errors import UsageError, UsageWarning

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"


@pytest.mark.parametrize(
    ("file", "same", "prefix"),
    [
        ("plain-100.pt", "100", ""),
        ("legacy-200.pth", "200", ""),
        ("nanogpt.pt", "model", "_orig_mod."),
        ("lightning.ckpt", "model", ""),
        ("single", "model", ""),
        ("sharded", "model", ""),
    ],
)
def test_tensors_are_those_of_torch_bit_for_bit(file, same, prefix):
    wanted = {prefix + name: array for name, array in load_file(GOLDEN / f"{same}.safetensors").items()}
    if file.startswith("legacy"):
        del wanted["kind.uint16"]  # a dtype that the format does not have
    source = storage.open_source(GOLDEN / file)
    assert set(source.leaves) == set(wanted)
    for name, leaf in source.leaves.items():
        array = wanted[name]
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype), name
        assert source.rows(name, 0, leaf.shape[0] if leaf.shape else 1).tobytes() == array.tobytes(), name
        for start, stop in ((0, leaf.size), (leaf.size // 3, leaf.size - leaf.size // 4)):
            out = np.empty(stop - start, leaf.dtype)
            source.read(name, start, out)
            assert out.tobytes() == array.reshape(-1)[start:stop].tobytes(), (name, start, stop)


def test_what_is_read_of_a_trainers_file_is_its_model_or_what_is_asked_for():
    source = torch_source.Source(GOLDEN / "lightning.ckpt")
    assert source.record()["item"] == "state_dict" and source.left_out == ["callbacks", "optimizer_states"]
    assert inspection.inspect(GOLDEN / "nanogpt.pt")["left_out"] == ["optimizer", "best_val_loss"]
    assert set(torch_source.Source(GOLDEN / "nanogpt.pt", "model").leaves) == {
        "_orig_mod.0.weight",
        "_orig_mod.1.weight",
    }
    with pytest.raises(UsageError, match=r"nanogpt\.pt has no tensors called ema; it has model$"):
        torch_source.Source(GOLDEN / "nanogpt.pt", "ema")


def test_two_files_say_once_what_is_left_out():
    with (
        pytest.warns(UsageWarning, match=r"nanogpt\.pt: optimizer, best_val_loss is left out") as told,
        storage.open_sources([GOLDEN / "nanogpt.pt", GOLDEN / "nanogpt.pt"]),
    ):
        assert len(told) == 1


# --- files that are not what they say --------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path):
    for name in ("plain-100.pt", "legacy-100.pth"):
        whole = (GOLDEN / name).read_bytes()
        file = tmp_path / name
        for length in (*range(0, 200, 23), *range(200, len(whole) - 1, 211), len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(UsageError) as told:
                torch_source.Source(file)
            assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_a_byte_changed_anywhere_is_refused_or_read_as_tensors(tmp_path):
    whole, file = (GOLDEN / "sharded" / "pytorch_model-00001-of-00002.bin").read_bytes(), tmp_path / "x.bin"
    refused = 0
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            torch_source.Source(file)
        except UsageError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > 100


def rewritten(file: Path, change: Any, *, pickle: bytes | None = None) -> Path:
    """A copy of a golden file whose entries (name -> content) ``change`` has changed."""
    with zipfile.ZipFile(GOLDEN / "single" / "pytorch_model.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if pickle is not None:
        entries["pytorch_model/data.pkl"] = pickle
    entries = change(entries) or entries
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


def with_tensor(
    offset: int = 0, shape: Any = (2, 3), stride: Any = (3, 1), count: int = 44, kind: str = "Float"
) -> bytes:
    """A pickle of one tensor, of storage 0 of the golden file."""

    def number(value: int) -> bytes:
        data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: Any) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\n" + kind.encode() + b"Storage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(count)
    rest = number(offset) + numbers(shape) + numbers(stride) + b"\x89}"
    return b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + rest + b"tRs."


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"offset": -1}, "has offset -1"),
        ({"stride": (-3, 1)}, r"stride \(-3, 1\)"),
        ({"shape": (-2, 3)}, r"shape \(-2, 3\)"),
        ({"shape": (6,)}, "the file is damaged"),
        ({"shape": (2**80, 3)}, "leads out of its data"),
        ({"shape": (0, 2**80)}, "leads out of its data"),
        ({"offset": 39}, "leads out of its data"),
        ({"stride": (2**62, 1)}, "leads out of its data"),
        ({"shape": (100, 3), "stride": (0, 1)}, "repeats its data"),
        ({"shape": (1,) * 40, "stride": (1,) * 40}, "the file is damaged"),
        ({"count": 43}, "needs 172 bytes and has 176"),
        ({"count": 2**70}, "needs 4,722,366,482,869,645,213,696 bytes"),
        ({"count": 22, "kind": "ComplexFloat", "shape": (2,), "stride": (1,)}, "is complex64, which cannot be merged"),
    ],
)
def test_tensors_that_lead_elsewhere_are_refused_by_name(tmp_path, tensor, words):
    good = torch_source.Source(rewritten(tmp_path / "good.pt", dict, pickle=with_tensor()))
    assert good.leaves["w"].shape == (2, 3)
    file = rewritten(tmp_path / "bad.pt", dict, pickle=with_tensor(**tensor))
    with pytest.raises(UsageError, match=rf"bad\.pt: tensor w.*{words}"):
        torch_source.Source(file)


ROOT = "pytorch_model"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: {**e, f"{ROOT}/../x": b""}, r"\.\./x has no name that torch.save gives"),
        (lambda e: {**e, "/etc/x": b""}, "has no name that torch.save gives"),
        (lambda e: {**e, "other/x": b""}, "is in another folder than the first"),
        (lambda e: {**e, f"{ROOT}/data/0": b"\0" * 8}, "needs 176 bytes and has 8"),
        (lambda e: {k: v for k, v in e.items() if not k.endswith("data/0")}, "has no data in the file"),
        (lambda e: {k: v for k, v in e.items() if not k.endswith(".pkl")}, "torch.save did not write"),
        (lambda e: {**e, f"{ROOT}/byteorder": b"big"}, "big-endian"),
        (lambda e: {**e, f"{ROOT}/constants.pkl": b""}, "TorchScript"),
        (lambda e: {**e, f"{ROOT}/data.pkl": b"\x80\x02K\x01."}, "holds no dictionary of tensors"),
        (lambda e: {"x": b""}, "has no name that torch.save gives"),
        (lambda e: {f"{ROOT}/x": b""}, "has no data.pkl"),
    ],
)
def test_zips_that_torch_does_not_write_are_refused(tmp_path, change, words):
    with pytest.raises(UsageError, match=rf"bad\.pt.*{words}"):
        torch_source.Source(rewritten(tmp_path / "bad.pt", change))


def test_a_zip_bomb_and_a_pickle_of_any_size_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(UsageError, match=r"entry x/data\.pkl is compressed"):
        torch_source.Source(file)
    monkeypatch.setattr(torch_file, "LARGEST", 64)
    with pytest.raises(UsageError, match=r"data\.pkl has [\d,]+ bytes; at most 64 are read"):
        torch_source.Source(GOLDEN / "plain-100.pt")


def test_entries_that_share_bytes_or_have_two_names_are_refused(tmp_path):
    """As a bomb of overlapping entries does: the central directory sends several to one place."""
    whole = bytearray((GOLDEN / "nanogpt.pt").read_bytes())
    with zipfile.ZipFile(GOLDEN / "nanogpt.pt") as archive:
        places = [entry.header_offset for entry in archive.infolist() if "/data/" in entry.filename]
    last = whole.rindex(struct.pack("<I", places[1]))
    whole[last : last + 4] = struct.pack("<I", places[0])
    (tmp_path / "bad.pt").write_bytes(whole)
    with pytest.raises(UsageError, match=r"bad\.pt: entry nanogpt/data/\d (overlaps|has another name)"):
        torch_source.Source(tmp_path / "bad.pt")


def test_a_damaged_pickle_is_found_by_its_checksum(tmp_path):
    whole = (GOLDEN / "single" / "pytorch_model.bin").read_bytes()
    (tmp_path / "bad.pt").write_bytes(whole.replace(b"0.weight", b"0.weighs", 1))
    with pytest.raises(UsageError, match=r"data\.pkl is damaged; fetch the file again"):
        torch_source.Source(tmp_path / "bad.pt")


def test_folders_whose_index_does_not_fit_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "sharded", tmp_path / "m")
    index = tmp_path / "m" / torch_source.INDEX
    found = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**found["weight_map"], "gone": "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(UsageError, match=r"has no tensor gone, which pytorch_model\.bin\.index\.json has in it"):
        torch_source.Source(tmp_path / "m")
    index.write_text(json.dumps({"weight_map": {"w": "../x.bin"}}))
    with pytest.raises(UsageError, match=r"tensor w is in '\.\./x\.bin', which is no file of the folder"):
        torch_source.Source(tmp_path / "m")


@pytest.mark.parametrize(
    ("files", "asked", "words"),
    [
        (["__0_0.distcp", ".metadata"], "", r"format_utils dcp_to_torch \S+/m OUT\.pt"),
        (["__0_0.distcp"], "__0_0.distcp", r"format_utils dcp_to_torch \S+/m OUT\.pt"),
        (["pytorch_model_fsdp_0/.metadata"], "", r"dcp_to_torch \S+/m/pytorch_model_fsdp_0 OUT\.pt"),
        (["global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest"], "", r"zero_to_fp32\.py \S+/m OUT"),
        (["mp_rank_00_model_states.pt"], "mp_rank_00_model_states.pt", r"python zero_to_fp32\.py \S+/m OUT"),
        (
            ["mp_rank_00/model_optim_rng.pt"],
            "",
            r"convert_checkpoints\.py export .*--megatron-path \S+/m --hf-path OUT",
        ),
        (["mp_rank_00/model_optim_rng.pt"], "mp_rank_00/model_optim_rng.pt", "of Megatron, in parts"),
        (["ckpt.pt"], "", r"it has ckpt\.pt: name the file itself"),
        (["x.tar.pt"], "x.tar.pt", "is no file of torch.save"),
    ],
)
def test_parts_of_a_distributed_checkpoint_are_refused_with_the_command_that_joins_them(tmp_path, files, asked, words):
    for name in files:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "ckpt.pt":
            shutil.copy(GOLDEN / "nanogpt.pt", tmp_path / "m" / name)
        else:
            (tmp_path / "m" / name).write_bytes(b"PK")
    with pytest.raises(UsageError, match=words) as told:
        storage.open_source(tmp_path / "m" / asked)
    assert "\n" not in str(told.value)
