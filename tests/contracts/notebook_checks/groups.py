"""What the notebook groups says, checked after each cell in its names."""

# %% groups-segments
assert enriched.loc["piece 3", "piece 3"] > 2
assert enriched.loc["piece 3", ["piece 1", "piece 2"]].max() < 1

# %% groups-segments-check
effect = pieces["link_effect"].to_pandas()
assert effect.loc["piece 3", "piece 3"] > 10 * effect.loc["piece 3", ["piece 1", "piece 2"]].max()

# %% groups-classes
mass, share = kinds["mean_mass"].to_series(), kinds["token_share"].to_series()
assert mass["stop word"] > share["stop word"]
assert mass["rare"] < share["rare"]

# %% groups-classes-check
hidden, others = hiding.loc["class hidden"], hiding.loc["as many others hidden"]
assert hidden["stop word"] > 1.2 * others["stop word"]
assert hidden["rare"] < others["rare"]

# %% groups-offsets
alone, ablated = "surest offset heads see their offset only", "surest offset heads ablated"
assert moved[alone] < 0.1 * moved[ablated]
assert moved["delimiters hidden from delimiter heads"] < 0.05
assert fixed.attrs["verdict"] == "disagreement"

# %% groups-lifetimes
mean = lives["lifetime_tokens"].mean(("layer", "head")).to_series()
assert mean["window"] > 0.6

# %% groups-lifetimes-check
loss = lives["window_loss"].to_series()
assert loss["window heads limited"] > loss["intact"]
assert lives.attrs["verdict"] == "disagreement"

# %% groups-distractors
looking = asked["relevance"] > 10
assert set(asked["layer"].values[looking.any("head")]) == {3}
assert (asked["dispersion"].where(looking, 0) < 0.2).all()

# %% groups-distractors-check
assert accuracy.iloc[0].min() > 0.9
assert accuracy.iloc[1].max() < 0.4
