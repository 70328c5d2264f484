"""Merges the golden checkpoints with ``wsm merge``, loads the result in transformers and compares the logits.

    peer/bin/python tests/golden/check.py --wsm=.venv/bin/wsm

Runs with the interpreter that ran ``make.py`` and needs nothing of ours but the command. Prints the largest difference
of every merge; exit status 1 if one is above 1e-4, where the largest logits are about 3.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from make import COUNT, HERE, WEIGHTS, configurations  # beside this file
from safetensors.torch import load_file

TOLERANCE = 1e-4


def main() -> int:
    """Checks both merges of both families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wsm", default="wsm", help="the command, e.g. 'python -m wsm_jax'")
    wsm = shlex.split(parser.parse_args().wsm)
    transformers.logging.set_verbosity_error()
    worst = 0.0
    for family in configurations():
        expected = load_file(HERE / family / "logits.safetensors")
        for name, weights in WEIGHTS.items():
            with tempfile.TemporaryDirectory() as temporary:
                output = Path(temporary) / "merged"
                inputs = [f"{HERE / family / str(i)}:{weights[i]}" for i in range(COUNT)]
                subprocess.run([*wsm, "merge", *inputs, f"--output={output}"], check=True)
                model = transformers.AutoModelForCausalLM.from_pretrained(output).eval()
                with torch.no_grad():
                    logits = model(expected["ids"]).logits
            error = (logits - expected[name]).abs().max().item()
            print(
                f"{family}, {name}: largest difference of the logits {error:.2g} (largest logit "
                f"{expected[name].abs().max().item():.3g})"
            )
            worst = max(worst, error)
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
