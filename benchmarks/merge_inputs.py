"""Checkpoints to merge, of real shapes and random float32 values, in three formats.

    python benchmarks/merge_inputs.py FOLDER SIZE FORMAT COUNT

* ``safetensors``: a Hugging Face folder, GPT-2's tensor names and shapes as ``save_pretrained`` writes them;
* ``stream``: our merge stream, GPT-2 with its layers stacked as ``wsm_jax.models.gpt2`` has it;
* ``orbax``: the same pytree as another codebase would leave it, Orbax's StandardCheckpointer with its defaults (OCDBT,
  compressed).

Writes FOLDER/inputs/0 to FOLDER/inputs/(COUNT - 1) and, of the tiny size for warming up, FOLDER/small/0 and 1.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import merge_process  # beside this file

DRAWN = 2**22  # numbers; drawing all of them would take longer than all merges
FORMATS = ("safetensors", "stream", "orbax")


@dataclasses.dataclass(frozen=True)
class Size:
    """A GPT-2 by its shape."""

    layers: int
    d_model: int
    heads: int
    context: int
    vocab_size: int


SIZES = {
    "tiny": Size(2, 32, 2, 64, 512),
    "125M": Size(12, 768, 12, 1024, 50257),
    "774M": Size(36, 1280, 20, 1024, 50257),
}


def huggingface_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of transformers' GPT2LMHeadModel; the output projection is tied."""
    D = size.d_model
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (size.vocab_size, D), "wpe.weight": (size.context, D)}
    matrices = {
        "attn.c_attn": (D, 3 * D),
        "attn.c_proj": (D, D),
        "mlp.c_fc": (D, 4 * D),
        "mlp.c_proj": (4 * D, D),
    }
    for layer in range(size.layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.{part}": (D,) for part in ("weight", "bias")}
        for name, shape in matrices.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    shapes |= {f"ln_f.{part}": (D,) for part in ("weight", "bias")}
    return {f"transformer.{name}": shape for name, shape in sorted(shapes.items())}


def tree_shapes(size: Size) -> Any:
    """Our GPT-2's parameters as a pytree of jax.ShapeDtypeStruct, vocabulary padded."""
    import jax

    from wsm_jax.config import ModelConfig
    from wsm_jax.models import model, presets

    config = ModelConfig(
        layers=size.layers,
        d_model=size.d_model,
        heads=size.heads,
        context=size.context,
        vocab_size=presets.pad_vocabulary(size.vocab_size),
    )
    return jax.eval_shape(model.build(config).init, jax.random.key(0))


def shapes(size: str, format: str) -> list[tuple[int, ...]]:
    """Shapes of the arrays of one checkpoint."""
    if format == "safetensors":
        return list(huggingface_shapes(SIZES[size]).values())
    import jax

    return [leaf.shape for leaf in jax.tree.leaves(tree_shapes(SIZES[size]))]


def parameters(size: str) -> int:
    """Parameters of a ``safetensors`` checkpoint; the other formats have no biases and a padded vocabulary."""
    return sum(math.prod(shape) for shape in huggingface_shapes(SIZES[size]).values())


def write_one(path: Path, size: Size, format: str, seed: int) -> None:
    """One checkpoint. Its numbers repeat only at distances that no compression looks back to."""
    import numpy as np

    block = np.random.default_rng(seed).normal(0.0, 0.02, DRAWN).astype(np.float32)

    def draw(shape: tuple[int, ...]) -> Any:
        return np.resize(block, shape)

    if format == "safetensors":
        from safetensors.numpy import save_file

        path.mkdir(parents=True)
        arrays = {name: draw(shape) for name, shape in huggingface_shapes(size).items()}
        save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(huggingface_config(size), indent=2))
        return
    import jax
    import jax.numpy as jnp

    tree = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape)), tree_shapes(size))
    if format == "stream":
        from wsm_jax.checkpoints import orbax

        orbax.save_tree(path, tree)
    else:
        import orbax.checkpoint as ocp  # the classic API, as other codebases use it

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)


def huggingface_config(size: Size) -> dict[str, Any]:
    """The ``config.json`` of transformers' GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": size.layers,
        "n_embd": size.d_model,
        "n_head": size.heads,
        "n_positions": size.context,
        "vocab_size": size.vocab_size,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def write(folder: Path, size: str, format: str, count: int) -> None:
    """Writes ``count`` checkpoints; they are on disk and out of the page cache when this returns."""
    for seed in range(count):
        write_one(folder.absolute() / str(seed), SIZES[size], format, seed)
        merge_process.make_cold([folder / str(seed)])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    write(root / "small", "tiny", sys.argv[3], 2)
    write(root / "inputs", sys.argv[2], sys.argv[3], int(sys.argv[4]))
