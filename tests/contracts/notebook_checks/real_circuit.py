"""What the notebook real_circuit says, checked after each cell in its names."""

# %% ioi-does
intact = does.groupby(level=0).first()["lower"]
assert intact["accuracy"] > 0.5
assert intact["logit_difference"] > 2

# %% ioi-circuit
assert found.attrs["verdict"] == "supported"
own, random = found["faithfulness"].values
assert own > 0.5 > random
left, without_random = found["completeness"].values
assert left < without_random

# %% ioi-heads
assert {"embedding", "logits"} <= set(circuit.nodes)

# %% ioi-roles
movers = named[named["IO"] > named[["S1", "S2"]].max(axis=1)]
assert len(movers)  # heads of the circuit that attend to the name to say
assert (named[["previous_token", "duplicate_token", "induction"]].max() > 0.4).any()
