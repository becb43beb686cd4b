"""What the notebook checkpoints says, checked after each cell in its names."""

# %% checkpoints-emergence
assert first < float(later.min())
assert set(later["layer"].values) == {1}

# %% checkpoints-order
names = sequence["score"].values.tolist()
assert names[0] == "previous_token"
assert set(names[1:]) == {"induction", "induction_accuracy"}
# First beyond doubt; the two others cannot be ordered.
assert sequence.attrs["pairs"] == ["supported", "too_few"]
assert sequence.attrs["order"][0]["entries"] == ["L0H0"]
assert float(sequence["in_order"][1]) > 0

# %% checkpoints-causal
start, end = accuracy.iloc[0], accuracy.iloc[-1]
assert start["intact"] < 0.1 < 0.9 < end["intact"]
assert end["induction heads ablated"] < 0.2
assert end["random other heads ablated"] > end["induction heads ablated"] + 0.3

# %% checkpoints-sinks
assert float(sinking["emergence_step"].min()) > float(later.max())
