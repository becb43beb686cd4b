"""What the notebook retrieval says, checked after each cell in its names."""

# %% retrieval-score-check
accuracy = found["needle_accuracy"].to_series()
assert accuracy["intact"] > 0.95
assert accuracy["top heads ablated"] < 0.1
assert accuracy["random other heads ablated"] > 0.8
copying = found["retrieval_set"] > 0.1
assert set(found["layer"].values[copying.any("head")]) == {3}

# %% retrieval-sweep
best, chance = curve.columns
assert curve.loc[1, best] > 0.9
assert curve.loc[5, best] < 0.1 < curve.loc[5, chance]

# %% retrieval-looked
first_layer = sweep.sel(layer=0)
everywhere = first_layer["always_on"] == 1
assert int(everywhere.sum()) == 1
assert float(first_layer["mean_set"].where(everywhere).max()) < 0.6
assert float(sweep["mean_set"].sel(layer=3).max()) > 0.9

# %% retrieval-question-run
share = asked["found"].to_series()
assert share["best heads"] > 0.9 > share["random other heads"]
assert asked["accuracy"].to_series()["query-focused heads ablated"] < 0.1
assert set(viz.top(asked, "qr_score").index) == set(viz.top(found, "retrieval_set").index)

# %% retrieval-literal
solved = matched["accuracy"].sel(condition="intact").to_series()
assert solved["literal"] > 0.9
assert solved["associative"] < 0.6
assert matched["evidence"].sel(kind="thread").isnull().all()
assert matched["mistakes"].to_pandas().loc["thread", "one step too short"] > 0.7

# %% retrieval-lookback
auroc = looking["auroc"].to_pandas()
assert auroc.loc["log odds, answer", "train"] > 0.95
assert 0.5 < auroc.loc["log odds, answer", "test"] < 0.9

# %% retrieval-lookback-causal
assert looking["accuracy"].to_series()["lookback heads ablated"] < 0.1
assert looking["auroc_lower"].to_pandas().loc["log odds, answer", "test"] > 0.5
