"""What the notebook geometry says, checked after each cell in its names."""

import numpy as np

# %% geometry-ranks
assert (used["key_rank"] > used["key_rank_before_rotation"]).all()
by_layer = used["qk_stable_rank"].mean("head")
assert int(by_layer.idxmax("layer")) == 3

# %% geometry-ranks-causal
lower, upper = (used[f"moved_{side}"].to_series() for side in ("lower", "upper"))
assert lower["random directions"] > 10 * upper["their principal components"]

# %% geometry-embedding
assert float(joint["gap"].min()) > 1

# %% geometry-embedding-check
assert float(joint["explained"].median()) < 0.5
assert float(joint["plane_fidelity"].max()) > 0.7
assert float(joint["plane_fidelity"].min()) < 0.3

# %% geometry-frequencies
total = turned["high_frequency"] + turned["low_frequency"] + turned["unrotated"]
np.testing.assert_allclose(total, 1, atol=1e-4)
moved = turned["moved"].to_series()
assert moved["low-frequency heads without low"] > 5 * moved["low-frequency heads without high"]

# %% geometry-frequencies-check
lower, upper = (turned[f"moved_{side}"].to_series() for side in ("lower", "upper"))
assert lower["high-frequency heads without high"] < upper["high-frequency heads without low"]

# %% geometry-similarity
assert 0 < float(alike["silhouette"]) < 0.5

# %% geometry-similarity-check
moved = alike["moved"].to_series()
assert moved["pattern of the nearest head"] < moved["pattern of a random other head"]

# %% geometry-positionality
moved = fixed["moved"].to_series()
most, least = (
    moved[f"{which} positional heads with the mean"] / moved[f"{which} positional heads ablated"]
    for which in ("most", "least")
)
assert most < 0.2 < least

# %% geometry-atlas-check
agree = mapped["agreement"]
assert float(agree.sel(one="task metric", other="output divergence")) > 0.6
shape = agree.sel(one="task metric").isel(other=slice(-2, None))
assert float(np.abs(shape).max()) < 0.5
