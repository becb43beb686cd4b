"""What the notebook lenses says, checked after each cell in its names."""

# %% lenses-lens
mean = float(lens["mean_prediction_kl"])
assert float(lens["untrained_kl"].min()) > mean
assert float((lens["lens_gain_lower"] > 0).mean()) > 0.9
assert float((lens["trained_kl"] < mean).mean()) > 0.9

# %% lenses-stream
assert (lens["stream_trained_kl"][:-1] < lens["trained_kl"][:-1].min("head")).all()

# %% lenses-causal
assert lens.attrs["verdict"] == "disagreement"
assert float(lens["gain_vs_ablation_lower"]) < 0

# %% lenses-basis
told = basis["advantage_lower"] > 0
assert float(told.mean()) > 0.6
assert told.sel(layer=3).all()
by_layer = basis["advantage"].mean("head")
assert by_layer.values.argmax() == 3
assert float(basis["explained_components"].mean()) > 4 * float(basis["explained"].mean())

# %% lenses-basis-causal
words, random, mean_alone = basis["moved"].values
assert words < mean_alone
assert words > 0.9 * random
