"""What the notebook shape says, checked after each cell in its names."""

import numpy as np

# %% shape-entropy
lower, upper = (even[f"layer_entropy_share_{side}"].to_series() for side in ("lower", "upper"))
assert lower[0] > upper[1:].max()

# %% shape-hardness
np.testing.assert_allclose(hard["spikiness"], 1 - even["entropy_share"], atol=1e-5)

# %% shape-hardness-causal
spread, lower, upper = (hard[f"spread_loss{end}"].to_series() for end in ("", "_lower", "_upper"))
assert lower["spiky heads spread"] > upper["least spiky heads spread"]
assert spread["least spiky heads spread"] > spread["intact"]

# %% shape-maps
spiked = maps["mean_spikiness"].to_series()
assert spiked["softmax"] > 3 * spiked.drop("softmax").max()

# %% shape-span-causal
loss, lower, upper = (reach[f"span_loss{end}"].to_series() for end in ("", "_lower", "_upper"))
fixed, elastic = "fixed heads cut to their span", "elastic heads cut as short"
assert loss[elastic] > loss[fixed]
assert lower[elastic] < upper[fixed]

# %% shape-rhythm
loss = beat["anchor_loss"].to_series()
hidden = loss["anchors hidden"]
others = loss["as many other tokens hidden"]
assert hidden > others

# %% shape-depth
last = "part 4 of 4"
assert near["mean_mass"].to_series().idxmax() == last
assert near["depth_loss"].to_series().idxmax() == last
assert near["depth_loss_lower"].to_series()[last] > 0

# %% shape-blocks
parts = sparse["window_share"] + sparse["stripe_share"] + sparse["rest_share"]
np.testing.assert_allclose(parts, 1, atol=1e-5)

# %% shape-blocks-causal
loss = sparse["block_loss"].to_series()
rise = loss - loss["all blocks"]
assert abs(rise["needed blocks"]) < 0.2 * rise["as many random blocks"]

# %% shape-slots
accuracy = placed["relevance_accuracy"].to_series()
assert set(placed["layer"].values[(placed["relevance"] > 0.5).any("head")]) == {3}
assert accuracy["relevance heads ablated"] < 0.2
assert accuracy["random other heads ablated"] > 0.8

# %% shape-parallel
rise = both.loc["parallel blocks"] - both.loc["whole context"]
assert rise["question_loss"] > 0 > rise["question_entropy"]
assert side.attrs["verdict"] == "disagreement"
