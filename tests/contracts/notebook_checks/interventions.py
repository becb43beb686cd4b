"""What the notebook interventions says, checked after each cell in its names."""

# %% interventions-pruning-check
curve = pruned["curve"]
half = curve.sel(removed=16)
assert float(half.sel(order="greedy")) > float(half.sel(order="random")) + 0.1
assert float(pruned["kept_share"]) > float(pruned["random_share"]) + 0.3

# %% interventions-injection-check
assert float(injected["own"]) < 1e-3  # every head's own weights, put back, change nothing
assert float(injected["uniform"].max()) > 1.0

# %% interventions-tuning-check
scores = tuned["tuned"].to_series()
before = float(tuned["before"])
assert scores["weights", "own heads"] > before + 5
assert scores["weights", "own heads"] > scores["weights", "random heads"]
assert scores["offsets", "own heads"] < scores["weights", "own heads"]

# %% interventions-vectors-check
right = added["accuracy"].to_series()
assert right["no shots"] == right["weights given to other heads"] == 0
assert right["task vector"] > 0.5
assert float(added["gain_lower"]) > 1
