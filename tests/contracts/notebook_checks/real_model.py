"""What the notebook real_model says, checked after each cell in its names."""

# %% real-sinks
assert float(found["sink_rate"]) > 75  # percent of heads and prompts
assert float(found["sink"].sel(layer=[0, 1, 10, 11]).max()) < 0.3
shares = {each["token"]: each["share_of_heads"] for each in found.attrs["sink_tokens"]}
assert all(0.7 < shares[word] < 0.9 for word in ("The", "Water", "def", '"'))

# %% real-types
accuracy = types["induction_accuracy"].to_series()
assert accuracy["intact"] > 0.6
assert accuracy["induction heads ablated"] < 0.1
assert accuracy["previous-token heads ablated"] < 0.1
assert accuracy["random other heads ablated"] > accuracy["intact"] - 0.1

# %% real-idle
assert set(induction.index) <= set(types.attrs["heads_by_type"]["induction"])
assert (induction["sink_on_texts"] > 0.8).all()

# %% real-previous
assert previous["sink_on_texts"].max() < induction["sink_on_texts"].min()

# %% real-ioi
assert float(lost["intact_lower"]) > 3  # logits: the model can do the task

# %% real-ioi-sink
assert most.loc["L0H0", "sink_free_ablation"] < 0.2 * most.loc["L0H0", "mean_ablation"]
change = (most["sink_free_ablation"] - most["mean_ablation"]).abs()
assert change.drop("L0H0").max() < 0.1
both = set(lost.attrs["important_heads"]) & set(types.attrs["heads_by_type"]["induction"])
assert both == {"L17H4"}

# %% real-movers-check
by_type = written.attrs["heads_by_type"]
assert by_type["copy-suppression"] == ["L23H3", "L24H4"]
assert viz.top(written, "lost", number=1).index[0] == "L23H3"
wrong, right = (written[name] for name in ("to_wrong", "to_answer"))
assert float(wrong.sel(layer=23, head=3)) > 5 * float(right.sel(layer=23, head=3))
assert float(right.sel(layer=24, head=4)) > 2 * float(wrong.sel(layer=24, head=4))
assert float(written["lost_upper"].sel(layer=24, head=4)) < 0
assert all(head.startswith("L23") for head in movers.index)
assert (movers.loc[by_type["name-mover-like"], "lost_lower"] < 0).all()
