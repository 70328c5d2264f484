"""Checkpoints to merge, of real shapes and random float32 values, in three formats.

    python benchmarks/merge_inputs.py '{"folder": "/tmp/x", "size": "125M", "format": "stream", "count": 4}'

* ``safetensors``: a Hugging Face folder, GPT-2's tensor names and shapes as ``save_pretrained`` writes them;
* ``stream``: our merge stream, GPT-2 with its layers stacked, no biases, the vocabulary padded;
* ``orbax``: the same pytree as another codebase would leave it, Orbax's StandardCheckpointer with its defaults (OCDBT,
  compressed).

Writes inputs/0 to inputs/(count - 1) into the folder and, of the tiny size for warming up, small/0 and 1.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import merge_process  # beside this file

DRAWN = 2**22  # numbers; drawing all of them would take longer than all merges
SIZES = {"tiny": (2, 32, 2, 64, 512), "125M": (12, 768, 12, 1024, 50257), "774M": (36, 1280, 20, 1024, 50257)}
FIELDS = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")  # of SIZES, as transformers' GPT-2 calls them

Shapes = dict[str, tuple[int, ...]]


def shapes(size: str, format: str) -> Shapes:
    """Name -> shape of every array of one checkpoint; the output projection is tied."""
    layers, D, _, context, vocabulary = SIZES[size]
    layer: Shapes = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
    layer |= {"ln_1": (D,), "ln_2": (D,)}
    if format != "safetensors":
        outer: Shapes = {"wte": (128 * math.ceil(vocabulary / 128), D), "wpe": (context, D), "ln_f": (D,)}
        return outer | {f"blocks_{name.replace('.', '_')}": (layers, *shape) for name, shape in layer.items()}
    found: Shapes = {"wte.weight": (vocabulary, D), "wpe.weight": (context, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for number in range(layers):
        for name, shape in layer.items():
            found |= {f"h.{number}.{name}.weight": shape, f"h.{number}.{name}.bias": shape[-1:]}
    return {f"transformer.{name}": shape for name, shape in sorted(found.items())}


def parameters(size: str) -> int:
    """Parameters of a ``safetensors`` checkpoint; the other formats have no biases and a padded vocabulary."""
    return sum(math.prod(shape) for shape in shapes(size, "safetensors").values())


def write(path: Path, size: str, format: str, seed: int) -> None:
    """One checkpoint, on disk and out of the page cache when this returns.

    Its numbers repeat only at distances that no compression looks back to.
    """
    import numpy as np

    block = np.random.default_rng(seed).normal(0.0, 0.02, DRAWN).astype(np.float32)
    arrays: dict[str, Any] = {name: np.resize(block, shape) for name, shape in shapes(size, format).items()}
    if format == "safetensors":
        from safetensors.numpy import save_file

        path.mkdir(parents=True)
        save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float32"}
        sizes = dict(zip(FIELDS, SIZES[size], strict=True))
        (path / "config.json").write_text(json.dumps({**config, **sizes, "bos_token_id": 0, "eos_token_id": 0}))
    else:
        import jax
        import orbax.checkpoint as ocp  # the classic API, as other codebases use it

        from wsm_jax.checkpoints import orbax

        arrays = jax.tree.map(jax.numpy.asarray, arrays)
        if format == "stream":
            orbax.save_tree(path, arrays)
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, arrays)
    merge_process.make("cold", [path])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    for name, size, count in (("small", "tiny", 2), ("inputs", asked["size"], asked["count"])):
        for seed in range(count):
            write(Path(asked["folder"]).absolute() / name / str(seed), size, asked["format"], seed)
