"""The peer of ``benchmarks/train_step.py``: the model of transformers in PyTorch. Needs nothing of ours.

Started by the benchmark as ``python train_step_torch.py eager|compile SHAPE_JSON``; for every line N on standard input
it runs N steps and prints one JSON line. Attention is PyTorch's own (``sdpa``). With bfloat16 as ``compute_dtype``
products are taken in it (autocast) and parameters stay float32, as ours.
"""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable


def main() -> None:
    """Builds the model, warms up, then answers lines until standard input ends."""
    mode, shape = sys.argv[1], json.loads(sys.argv[2])
    if threads := shape.get("threads"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() and not threads else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as XLA has it there
    config = configuration(transformers, shape)
    with torch.device(device):
        own = {"experts_implementation": shape["peer_experts"]} if "peer_experts" in shape else {}
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **own)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, shape["vocab_size"], (shape["batch_size"], shape["context"] + 1), device=device)
    half = shape.get("compute_dtype") == "bfloat16"
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss_of(inputs, targets):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    compute = torch.compile(loss_of) if mode == "compile" else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = compute(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    first = float(step())
    float(step())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name() if device == "cuda" else device
    answer({"versions": versions, "device": name, "parameters": parameters, "first_loss": first})
    for line in sys.stdin:
        answer(timed(step, int(line.split()[0])))


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
    if shape["family"] == "ling":
        return deepseek(transformers, common, shape)
    own = {"num_key_value_heads": shape["kv_heads"], "intermediate_size": shape["d_ff"]}
    own |= {"rope_theta": shape.get("rope_theta", 10000.0)}
    return transformers.LlamaConfig(**common, **own, tie_word_embeddings=shape["tied"])


def deepseek(transformers, common: dict, shape: dict):
    """The nearest to Ling: the same experts and router; heads as wide, whose keys and values share a low rank."""
    rotated = int(shape["rotary_pct"] * shape["head_dim"])
    heads = {"qk_rope_head_dim": rotated, "qk_nope_head_dim": shape["head_dim"] - rotated}
    heads |= {"v_head_dim": shape["head_dim"], "q_lora_rank": None, "kv_lora_rank": shape["d_model"] // 2}
    experts = {"n_routed_experts": shape["experts"], "num_experts_per_tok": shape["experts_per_token"]}
    experts |= {"n_group": shape["groups"], "topk_group": shape["groups_kept"], "n_shared_experts": 1}
    widths = {"intermediate_size": shape["d_ff"], "moe_intermediate_size": shape["expert_ff"]}
    more = {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "tie_word_embeddings": False}
    more |= {"num_key_value_heads": shape["heads"]}
    return transformers.DeepseekV3Config(**common, **heads, **experts, **widths, **more)


def timed(step, count: int, wait: Callable[..., float] = float) -> dict:
    """Seconds on the clock and CPU-seconds (user and system) of ``count`` steps, and the last loss.

    Steps are dispatched one after the other, as in training; ``wait`` waits for what the last gave and makes it a loss.
    """
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    loss = 0.0
    for _ in range(count):
        loss = step()
    loss = wait(loss)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "loss": loss}


def answer(record: dict) -> None:
    """One JSON line on standard output."""
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
