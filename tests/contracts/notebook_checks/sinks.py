"""What the notebook sinks says, checked after each cell in its names."""

import numpy as np

# %% sinks-rate
assert list(rates.values()) == sorted(rates.values(), reverse=True)
assert rates[0.2] > rates[0.8]

# %% sinks-controls
rate = controls["rate"].to_series()
assert rate["random tokens"] > 10  # percent
assert rate["repeated token"] < 5
assert float(in_stories["sink_rate"]) < 5

# %% sinks-topology
share = topology["sink_share"].to_series()
assert share.idxmax() == "first token"
assert share["first token"] < 0.75

# %% sinks-massive
assert huge["tokens"].to_series()["massive"] == 0
assert np.isnan(huge["loss"].to_series()["massive set to zero"])

# %% sinks-massive-loose
assert large["tokens"].to_series()["massive"] == cap.sizes["key"]
loss = large["loss"].to_series()
rise = loss - loss["intact"]
assert rise["massive set to zero"] > 2 * rise["massive set to mean"] > 0

# %% sinks-disagreement
sinking = found["sink"] > 0.3
verdict = calibrated["verdict"].where(sinking)
assert int(sinking.sum()) > int((verdict != 0).where(sinking, False).sum())
