"""What the notebook circuits says, checked after each cell in its names."""

# %% circuits-patching
gap = float(patched["clean"] - patched["corrupted"])
assert 0.3 * gap < float(patched["denoising"].max()) < 0.9 * gap

# %% circuits-patching-check
assert float(patched["noising_agreement_lower"]) > 0.8
first = viz.top(patched, "noising", patched["noising_attribution"], number=1).iloc[0]
assert first["noising_attribution"] < 0.9 * first["noising"]

# %% circuits-direct
total = float(direct["component_logit"].sum())
assert abs(total - float(direct["logit_difference"])) < 0.01 * abs(total)

# %% circuits-direct-check
early = patched["noising"].sel(layer=0)
assert float(early.max()) > 5
assert float(abs(direct["direct_logit"].sel(layer=0)).max()) < 1

# %% circuits-size
assert float(written["share_vs_ablation_upper"]) < 0.8

# %% circuits-blocks
influence, cost = turned["block_influence"].to_series(), turned["skip_loss"].to_series()
assert influence.idxmax() == cost.idxmax() == "0"
assert cost.min() > 0

# %% circuits-sure
assert 2 <= int((sure["margin"] > 0).sum()) <= 10
