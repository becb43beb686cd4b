"""What the notebook conditions says, checked after each cell in its names."""

# %% conditions-contrast
assert (named["significance"] > 5).all()
assert all(head.startswith("L3") for head in named.index)

# %% conditions-contrast-check
first, second = lost.index
ours, others = lost.columns
assert lost.loc[first, ours] > 2 * lost.loc[second, ours] > 0
assert abs(lost.loc[first, others]) < 0.5

# %% conditions-pairs
difference, loss = moved["difference"], moved["lost"].to_series()
assert int((difference > 0.3).sum()) > 8
assert loss.iloc[0] > 1 > 20 * abs(loss.iloc[1])

# %% conditions-reliance
accuracy = relied["accuracy"].to_series()
assert accuracy["context-reliant heads ablated"] < 0.1
assert accuracy["random other heads ablated"] > 0.8

# %% conditions-probing
assert found["all heads"] > 0.9
assert found[["fixed distance", "shuffled links", "random weights"]].max() < 0.4
assert found["best single head"] > found["all heads"] - 0.1

# %% conditions-probing-check
cut = probe["moved"].to_series()
assert cut["link cut in probe heads"] > 1 > 20 * cut["link cut in random other heads"]
