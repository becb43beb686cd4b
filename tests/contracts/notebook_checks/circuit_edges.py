"""What the notebook circuit_edges says, checked after each cell in its names."""

# %% edges-score
assert scored.attrs["verdict"] == "supported"
assert float(scored["agreement_lower"]) > 0.8
assert float(scored["sample_agreement_lower"]) > 0.5

# %% edges-share
assert abs(float(scored["input_share"].sum()) - 1) < 1e-6
assert float(scored["input_share"].sel(condition="v")) > 0.3

# %% edges-circuit
assert found.attrs["verdict"] == "supported"
own, random = found["faithfulness"].values
assert own > 0.8 > 0.2 > random
left, without_random = found["completeness"].values
assert left < 0.1 < 0.3 < without_random

# %% edges-needed
assert float(found["size"]) < 0.2 * found.attrs["edges"]
assert float(found["needed_share"]) > 0.5

# %% edges-value
assert float(shared["edge_jaccard"]) > 0.5
assert float(shared["edge_p_value"]) < 1e-6
assert to_graph(circuit).number_of_edges() == len(circuit.edges)

# %% edges-methods
auc = judged["node_auc"].to_pandas().iloc[0]
assert auc["EAP-IG"] > 0.97
assert auc["attribution"] > 0.97
assert auc["trained SAE, scaled"] < 0.95
