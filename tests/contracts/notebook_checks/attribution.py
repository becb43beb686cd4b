"""What the notebook attribution says, checked after each cell in its names."""

# %% attribution-importance-check
zero, resampled = lost["zero_ablation"], lost["resample_ablation"]
constant = (lost["zero_ablation_lower"].pipe(abs) > 0.5) & (abs(resampled) < 0.1)
assert int(constant.sum()) >= 2
assert float(lost["zero_ablation_upper"].min()) < 0
assert float(lost["zero_vs_resample"]) < float(lost["zero_vs_mean"])

# %% attribution-gradient
assert float(lost["gate_vs_zero_lower"]) > 0.5
assert float(lost["zero_vs_resample_upper"]) < float(lost["gate_vs_zero_lower"])

# %% attribution-rollout
lower, upper = (traced[f"ablation_correlation_{side}"].to_series() for side in ("lower", "upper"))
assert lower["rollout"] > upper["raw attention"]
assert upper.max() < 0.8

# %% attribution-relevance
assert float(weighed["relevance_vs_ablation_lower"]) > 0
words = weighed["gradient_attention"].assign_coords(query=weighed["token"].values)[:-1].to_series()
assert words.idxmax() in set(first.clean.split())

# %% attribution-lrp
parts = handed["component_relevance"].to_series()
assert abs(parts["missing"]) < 1e-3 * parts["tokens"]
relevance = handed["token_relevance"].values
repeated = handed["token"].values == handed["token"].values[relevance.argmin()]
names = relevance[repeated]
assert names.min() < 0 < names.max()
assert float(handed["relevance_vs_ablation_lower"]) > 0

# %% attribution-routes
assert traced.attrs["verdict"] == "supported"
through = traced["head_usage"].sum("head") + traced["residual_usage"]
assert (abs(through - 1) < 1e-6).all()

# %% attribution-faithfulness-table
gap = (trusted["insertion"] - trusted["deletion"]).isel(task=0).to_series()
assert gap["token replacement"] > gap["random order"] + 0.3
_, _, indistinct = trusted.attrs["note"].partition("Not distinguishable from a random order")
assert "Raw attention" in indistinct

# %% attribution-sae-baselines
auc = coded["node_auc"].to_series()
assert auc["trained SAE"] > 0.5
assert auc["attribution"] > auc["mean difference"] > auc["trained SAE"]
assert coded.attrs["verdict"] == "disagreement"
