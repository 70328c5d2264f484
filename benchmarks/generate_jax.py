"""Our side of ``benchmarks/generate.py``.

Started by the benchmark as ``python generate_jax.py SETTINGS_JSON``; for every line ``1 BATCH`` on standard input it
makes ``new_tokens`` after each of BATCH prompts and prints one JSON line.
"""

import json
import os
import sys
import time

from train_step_torch import answer  # beside this file; imports torch only when it runs


def main() -> None:
    """Builds the model, then answers lines until standard input ends."""
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    import jax
    import numpy as np
    from train_step_jax import given

    from wsm_jax.config import MODEL_FIELDS
    from wsm_jax.evaluation import decode
    from wsm_jax.evaluation.sampling import Sampling
    from wsm_jax.models import model

    built = model.build(MODEL_FIELDS[settings["family"]](**given(settings)))
    params = jax.jit(built.init)(jax.random.key(0))
    parameters = model.parameter_count(params)
    decoder, new = decode.decoder(built, params), settings["new_tokens"]
    del params
    random = np.random.default_rng(0)
    answer({"versions": {"jax": jax.__version__}, "parameters": parameters})
    for line in sys.stdin:
        batch = int(line.split()[1])
        prompts = random.integers(0, settings["vocab_size"], (batch, settings["prompt"])).tolist()
        start, ended = time.perf_counter(), np.zeros(batch, bool)
        made = sum(
            part.shape[1]
            for part in decode.tokens_after(
                decoder, prompts, range(batch), Sampling(), ends=[], limits=[new] * batch, ended=ended
            )
        )
        assert made >= new
        answer({"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    main()
