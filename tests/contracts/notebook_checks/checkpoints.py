"""What the notebook checkpoints says, checked after each cell in its names."""

# %% checkpoints-emergence
assert first < float(later.min())
assert set(later["layer"].values) == {1}

# %% checkpoints-causal
start, end = accuracy.iloc[0], accuracy.iloc[-1]
assert start["intact"] < 0.1 < 0.9 < end["intact"]
assert end["induction heads ablated"] < 0.2
assert end["random other heads ablated"] > end["induction heads ablated"] + 0.3

# %% checkpoints-sinks
assert float(sinking["emergence_step"].min()) > float(later.max())
