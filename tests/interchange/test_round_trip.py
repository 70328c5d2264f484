"""A folder becomes a run and a folder again: every tensor bit for bit, files, dtypes, records; what is refused."""

import json
import shutil

import numpy as np
import pytest

from tests.interchange import folders
from tests.interchange.folders import (
    BFLOAT16,
    GPT2,
    LING,
    LLAMA,
    NEOX,
    QWEN2,
    QWEN3,
    ROWS,
    arrays,
    make,
    same_bits,
    tensors_of,
)
from wsm_jax.checkpoints import inspection, model_folder, orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError, UsageWarning
from wsm_jax.evaluation import evaluate
from wsm_jax.interchange import incoming, outgoing, transfer
from wsm_jax.merging.selection import select

BUFFERS = {
    "GPT2LMHeadModel": {"transformer.h.0.attn.bias": np.ones((1, 1, 16, 16), np.uint8)},
    "BailingMoeV2ForCausalLM": {"model.layers.3.eh_proj.weight": np.ones((8, 16), np.float32)},
    "GPTNeoXForCausalLM": {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(1, np.float32)},
}


def export(run: Run, output, **options):
    path = evaluate.checkpoint_path(run)
    return outgoing.take_out(run, path, evaluate.fields_of(run), output, **options)


@pytest.mark.parametrize(
    "values",
    [GPT2, NEOX, *(pytest.param(values, marks=pytest.mark.integration) for values in (LLAMA, QWEN2, QWEN3, LING))],
    ids=lambda values: values["model_type"],
)
def test_every_tensor_comes_back_bit_for_bit(values, tmp_path):
    values = {**values, "vocab_size": ROWS}
    dtype = BFLOAT16 if values["model_type"] in ("gpt_neox", "qwen3") else np.float32
    tensors = arrays(values, dtype=dtype)
    norm = next(name for name in tensors if "norm" in name or "ln_" in name)
    tensors[norm] = tensors[norm].astype(np.float16)  # one of another dtype
    imported = incoming.bring_in(
        str(make(tmp_path / "there", values, tensors | BUFFERS.get(public_of(values), {}), shards=2)), tmp_path / "run"
    )
    assert imported["left_out"] == sorted(BUFFERS.get(public_of(values), {}))
    assert imported["dtypes"] == {"most": np.dtype(dtype).name, "others": {norm: "float16"}}
    run = Run(tmp_path / "run")
    stored = orbax.abstract_tree(run.merge_stream / "1")
    assert {leaf.dtype.name for leaf in folders_leaves(stored)} == {"float32"}
    export(run, tmp_path / "again", shard=2000)
    same_bits(tensors_of(tmp_path / "again"), tensors)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    before = json.loads((tmp_path / "there" / "config.json").read_text())
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == {
        **before,
        "torch_dtype": np.dtype(dtype).name,
    }
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert inspection.verify(tmp_path / "again")["damaged"] == [] == inspection.verify(tmp_path / "run")["damaged"]


def public_of(values):
    return incoming.architecture.recognise(values)[0].architecture


def folders_leaves(tree):
    return incoming.architecture.named_leaves(tree).values()


def test_blocks_give_what_whole_tensors_give(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "BLOCK", 37)  # so that every matrix is cut, turned or not
    values = {**LLAMA, "vocab_size": ROWS, "num_key_value_heads": 1}
    tensors = arrays(values)
    incoming.bring_in(str(make(tmp_path / "there", values, tensors)), tmp_path / "run")
    head = orbax.load_tree(Run(tmp_path / "run").merge_stream / "1")["head"]["kernel"]
    np.testing.assert_array_equal(head, tensors["lm_head.weight"].T)
    export(Run(tmp_path / "run"), tmp_path / "again")
    same_bits(tensors_of(tmp_path / "again"), tensors)


@pytest.mark.integration
def test_a_series_is_a_merge_stream_and_a_merge_of_it_tells_its_inputs(tmp_path):
    values = {**NEOX, "vocab_size": ROWS}
    for step in (500, 1000, 2000, 3000):
        make(tmp_path / "there" / f"step{step}", values, arrays(values, seed=step, dtype=BFLOAT16))
    incoming.bring_in(str(tmp_path / "there"), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert orbax.complete_steps(run.merge_stream) == [500, 1000, 2000, 3000]
    assert (run.plan.merge_interval, run.plan.steps) == (1000, 3000)
    assert select(run, 3).steps == (1000, 2000, 3000)
    assert inspection.inspect(tmp_path / "run")["merge_steps"] == [500, 1000, 2000, 3000]
    incoming.bring_in(f"{tmp_path / 'there'}@step3000,step1000", tmp_path / "part")
    assert orbax.complete_steps(Run(tmp_path / "part").merge_stream) == [1000, 3000]


@pytest.mark.filterwarnings("ignore::wsm_jax.errors.UsageWarning")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda there: (there / "model.safetensors").unlink(), "is neither a complete Orbax checkpoint nor a folder"),
        (lambda there: (there / "config.json").unlink(), "is no folder of a model: it has no config.json"),
        (lambda there: (there / "tokenizer.json").write_text("{}"), "is not a tokenizer that can be read"),
        (lambda there: rewrite(there, vocab_size=285), "tensor model.embed_tokens.weight is (288, 8)"),
        (lambda there: rewrite(there, num_hidden_layers=3), "has no tensor model.layers.2."),
        (
            lambda there: folders.train_bpe(folders.TEXT * 9, 300).save(there / "tokenizer.json"),
            "do not belong together",
        ),
    ],
)
def test_bad_folders_are_refused_before_anything_is_written(spoil, message, tmp_path):
    values = {**LLAMA, "vocab_size": ROWS}
    there = make(tmp_path / "there", values, arrays(values))
    spoil(there)
    with pytest.raises(UsageError) as error:
        incoming.bring_in(str(there), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def rewrite(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def test_series_that_do_not_go_together_are_refused(tmp_path):
    values = {**LLAMA, "vocab_size": ROWS}
    for name, theta in (("step1", 1e4), ("step2", 5e5)):
        make(tmp_path / "a" / name, {**values, "rope_theta": theta}, arrays(values))
    with pytest.raises(UsageError, match=r"step1/config.json: rope_theta is 10000\.0, in the newest it is 500000\.0"):
        incoming.bring_in(str(tmp_path / "a"), tmp_path / "run")
    rewrite(tmp_path / "a" / "step1", rope_theta=5e5)
    folders.train_bpe(folders.TEXT[:3], 270).save(tmp_path / "a" / "step1" / "tokenizer.json")
    with pytest.raises(UsageError, match=r"the tokenizer of .*step1 differs from that of .*step2"):
        incoming.bring_in(str(tmp_path / "a"), tmp_path / "run")
    shutil.move(tmp_path / "a" / "step1", tmp_path / "a" / "2")
    with pytest.raises(UsageError, match="are both of step 2"):
        incoming.bring_in(str(tmp_path / "a"), tmp_path / "run")
    for source, message in (
        (f"{tmp_path / 'a'}@step9", r"has no folder step9; it has 2, step2"),
        (f"{tmp_path / 'a'}@", "names no revision after @"),
        (f"{tmp_path / 'nowhere'}", "is no folder, and no name on the hub"),
        (f"{tmp_path}", "nor folders of steps"),
    ):
        with pytest.raises(UsageError, match=message):
            incoming.bring_in(source, tmp_path / "run")


def test_a_tied_copy_must_be_one(tmp_path):
    values = {**QWEN2, "vocab_size": ROWS}
    tensors = arrays(values)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    imported = incoming.bring_in(str(make(tmp_path / "same", values, tensors | copy)), tmp_path / "run")
    assert imported["left_out"] == ["lm_head.weight"]
    copy["lm_head.weight"][-1, -1] += 1
    with pytest.raises(UsageError, match=r"lm_head.weight is not model.embed_tokens.weight, though config.json ties"):
        incoming.bring_in(str(make(tmp_path / "other", values, tensors | copy)), tmp_path / "run2")


def test_contexts_and_dtypes(tmp_path):
    values = {**LLAMA, "vocab_size": ROWS}
    tensors = arrays(values)
    tensors["model.norm.weight"][0] = 1e6
    there = make(tmp_path / "there", values, tensors, tokenizer=False)
    with pytest.raises(UsageError, match="--context=17: the model's context is 16"):
        incoming.bring_in(str(there), tmp_path / "run", context=17)
    with pytest.warns(UsageWarning, match="has no tokenizer, so that no text can be scored"):
        incoming.bring_in(str(there), tmp_path / "run", context=8)
    run = Run(tmp_path / "run")
    assert run.config.model.context == 8
    with pytest.raises(UsageError, match="has no tokenizer; import it again with --tokenizer=PATH"):
        evaluate.run_evaluator(run, "validation", source="text:nowhere.txt")
    with pytest.raises(UsageError, match="was imported and has no data of its own; give it text: --source=text:PATH"):
        evaluate.run_evaluator(run, "validation")
    with pytest.raises(UsageError, match="leaf final_norm/scale overflows float16"):
        export(run, tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()
    export(run, tmp_path / "bfloat16", dtype="bfloat16")
    rounded = {name: tensor.astype(BFLOAT16) for name, tensor in tensors.items()}
    same_bits(tensors_of(tmp_path / "bfloat16"), rounded)
    told = json.loads((tmp_path / "bfloat16" / "config.json").read_text())
    assert (told["torch_dtype"], told["max_position_embeddings"]) == ("bfloat16", 16)
    with pytest.raises(UsageError, match="exists; choose another name"):
        export(run, tmp_path / "bfloat16")


def test_folders_whose_tokenizers_differ_are_not_merged(tmp_path):
    values = {**LLAMA, "vocab_size": ROWS}
    places = [make(tmp_path / name, values, arrays(values)) for name in ("a", "b")]
    model_folder.check_inputs(places)
    content = json.loads((places[0] / "tokenizer.json").read_text())
    (places[0] / "tokenizer.json").write_text(json.dumps(content))  # other bytes, the same tokens
    model_folder.check_inputs(places)
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (places[0] / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"number their tokens differently \('a' is \d+ and \d+\)"):
        model_folder.check_inputs(places)
