"""The peer of ``benchmarks/generate.py``: ``generate`` of transformers, eager, greedy. Needs nothing of ours.

Started by the benchmark as ``python generate_torch.py SETTINGS_JSON``; lines and answers are those of our side.
"""

import json
import os
import sys
import time
import warnings

from train_step_torch import answer  # beside this file


def main() -> None:
    """Builds the model, then answers lines until standard input ends."""
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    shape = {
        "vocab_size": settings["vocab_size"],
        "max_position_embeddings": settings["context"],
        "hidden_size": settings["d_model"],
        "num_hidden_layers": settings["layers"],
        "num_attention_heads": settings["heads"],
    }
    if settings["family"] == "gpt2":
        config = transformers.GPT2Config(**shape, activation_function=settings["activation"])
    else:
        own = {"num_key_value_heads": settings["kv_heads"], "intermediate_size": settings["d_ff"]}
        config = transformers.LlamaConfig(**shape, **own, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    new = settings["new_tokens"]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    answer({"versions": versions, "parameters": sum(p.numel() for p in model.parameters())})
    for line in sys.stdin:
        prompts = torch.randint(0, settings["vocab_size"], (int(line.split()[1]), settings["prompt"]))
        start = time.perf_counter()
        with torch.no_grad():
            made = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=new,
                min_new_tokens=new, pad_token_id=0,
            )  # fmt: skip
        assert made.shape[1] == settings["prompt"] + new
        answer({"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    main()
