"""What stands beside the parameters of a train state, and what is a parameter whatever it is called."""

import pytest

from wsm_jax.core.train_state import beside_parameters


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["step", "params/w", "opt_state/0/mu/w", "opt_state/0/count"], ["opt_state"]),
        (["params/mu/w", "params/opt_state/nu", "batch_stats/mean"], ["batch_stats"]),
        (["model/w", "optimizer/a"], ["optimizer"]),
        (["model/layers/w", "adam/0/layers/w"], ["adam"]),  # repeats the model's paths
        (["model/layers/kernel", "lm_head/kernel"], []),  # a Transformer's own module
        (["state/params/w", "state/opt/w", "other/w"], ["state/opt"]),
        (["params/model/w", "params/optimizer/w"], []),
        (["model/a/params/w", "model/a/opt/w"], []),
        (["params/w", "model/w"], []),
        (["params", "opt/w"], []),  # a leaf of that name is no subtree
        (["embedding", "blocks/kernel"], []),
    ],
)
def test_what_stands_beside_the_parameters(paths, found):
    got = beside_parameters(paths)
    assert list(got) == found
    assert all(path.startswith(f"{tree}/") for tree, leaves in got.items() for path in leaves)
