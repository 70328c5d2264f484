"""The peer of ``benchmarks/train_step.py``: the model of transformers in PyTorch. Needs nothing of ours.

Started by the benchmark as ``python train_step_torch.py eager|compile SHAPE_JSON``; for every line N on standard input
it runs N steps and prints one JSON line.
"""

import json
import os
import resource
import sys
import time
import warnings


def main() -> None:
    """Builds the model, warms up, then answers lines until standard input ends."""
    mode, shape = sys.argv[1], json.loads(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: shape["threads"]])
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(shape["threads"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration(transformers, shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, shape["vocab_size"], (shape["batch_size"], shape["context"] + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss_of(inputs, targets):
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    compute = torch.compile(loss_of) if mode == "compile" else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = compute(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    first = step()
    step()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    answer({"versions": versions, "parameters": parameters, "first_loss": first})
    for line in sys.stdin:
        answer(timed(step, int(line)))


def configuration(transformers, shape: dict):
    """The model of ``shape``, without dropout."""
    common = {
        "vocab_size": shape["vocab_size"],
        "max_position_embeddings": shape["context"],
        "hidden_size": shape["d_model"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if shape["family"] == "gpt2":
        # Exact GELU like ours, and faster in eager mode than the default, gelu_new.
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return transformers.GPT2Config(**common, **none, activation_function="gelu")
    if shape["family"] == "neox":
        return transformers.GPTNeoXConfig(**common, intermediate_size=4 * shape["d_model"])
    own = {"num_key_value_heads": shape["kv_heads"], "intermediate_size": shape["d_ff"]}
    return transformers.LlamaConfig(**common, **own, tie_word_embeddings=shape["tied"])


def timed(step, count: int) -> dict:
    """Seconds on the clock and CPU-seconds (user and system) of ``count`` steps, and the last loss."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    loss = 0.0
    for _ in range(count):
        loss = step()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "loss": loss}


def answer(record: dict) -> None:
    """One JSON line on standard output."""
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
