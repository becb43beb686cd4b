"""What the notebook query_key says, checked after each cell in its names."""

# %% query-key-terms
for kind, whole in (("term", "score"), ("margin", "margin")):
    total = float(found[whole])
    assert abs(float(found[f"pair_{kind}"].sum()) - total) < 1e-4 * abs(total)
best = viz.top(found, "key_margin", number=3).index.tolist()
assert all(str(name).startswith("L2H") for name in best), best

# %% query-key-lost
assert found.attrs["verdict"] == "supported"
first = found.isel(condition=0)
assert 0.5 < float(first["margin_lost"] / first["predicted"]) < 1.2
assert abs(float(found["margin_lost"][-1])) < 0.3 * float(found["margin_lost"][0])

# %% query-key-graph
ends = zip(*(traced[name].values.tolist() for name in communication.ENDS), strict=True)
assert (2, 7, 3, 5) in list(ends)

# %% query-key-few
assert float(traced["directions"].sel(layer=3, head=5)) < float(
    traced["directions_random"].sel(layer=3, head=5)
)
signals, rest, drawn = traced["margin_lost"].values
assert signals > 2 * drawn
assert rest < signals
