"""One difference and its interval again, from the committed nats alone, beside what claims.json has.

    python experiments/recompute.py results/NAME/SCALE CLAIM

Imports nothing of this project. CLAIM: a claim that is a difference of two arms, or an arm of the table, measured at
two seeds or more.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

folder, name = Path(sys.argv[1]), sys.argv[2]
told, texts = (json.loads((folder / file).read_text()) for file in ("claims.json", "documents.json"))
records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
with np.load(folder / "nats.npz") as stored:
    nats = dict(stored)
claim = next(each for each in told["claims"] + told["differences"] if each["claim"] == name)

# Nats of one arm minus those of the other, [seeds, documents]; a choice is the arm with the lowest validation loss.
record, among = {(r["arm"], r["seed"]): r for r in records}, {c["choice"]: c for c in told["choices"]}
loss = lambda a, s, of: np.mean([record[a, s]["validation_domains"][d] for d in of] or record[a, s]["validation"])  # noqa: E731
pick = lambda c, s: min(c["of"], key=lambda a: loss(a, s, c.get("domains", [])))  # noqa: E731
arms = [[pick(among[arm], s) if arm in among else arm for arm in claim["arms"]] for s in told["seeds"]]
gap = np.array([nats[f"{a}|{s}"].astype(float) - nats[f"{b}|{s}"] for (a, b), s in zip(arms, told["seeds"])])  # noqa: B905

# Bits per byte at each seed, mean over domains: with all documents, then without each.
keep = np.c_[np.ones(gap.shape[1]), 1 - np.eye(gap.shape[1])]
inside = [np.array(texts["domain"]) == texts["domains"].index(domain) for domain in claim["domains"]]
values = np.mean([(gap * d) @ keep / (texts["bytes"] * d @ keep) for d in inside], axis=0) / np.log(2)
by_seed, without, n = values[:, 0], values[:, 1:], len(values)

# Variance of their mean: by seeds, by documents (jackknife), and what is in both; Student's t.
jackknife = lambda x: np.array([(d.sum() - 1) * np.var(x[d]) for d in inside])  # noqa: E731
seeds, parts = by_seed.var(ddof=1) / n, jackknife(without.mean(axis=0))
both = sum(jackknife(row - without.mean(axis=0)).sum() for row in without) / n / (n - 1)
shared, degrees = max(parts.sum() - both, 0), parts.sum() ** 2 / sum(parts**2 / [d.sum() - 1 for d in inside])
degrees = (seeds + shared) ** 2 / (seeds**2 / (n - 1) + shared**2 / degrees)
half = max(t.ppf(0.975, degrees) * (seeds + shared) ** 0.5, t.ppf(0.975, n - 1) * seeds**0.5)
print(f"recomputed   {by_seed.mean():+.8f} [{by_seed.mean() - half:+.8f}, {by_seed.mean() + half:+.8f}]")
print("claims.json  {:+.8f} [{:+.8f}, {:+.8f}]".format(claim["estimate"], *claim["interval"]))
