"""What the notebook real_browse says, checked after each cell in its names."""

from headscope.analyses import head_types

# %% browse-all
first = weights.isel(key=0, query=slice(1, None)).mean("query")
assert float((first.isel(layer=slice(12, 25)) > 0.5).mean()) > 0.5  # most are a bright first column

# %% browse-layer
assert words[again : again + 2] == [" red", " book"]

# %% browse-score
twice = tasks.make("induction", tokenizer=model.tokenizer, n=4)
asked = analyses.needs("head_types")
types = head_types.run(capture(model, twice, **asked), model, twice, draws=1)
assert len(set(best.index) & set(viz.top(types, "induction", number=8).index)) >= 3

# %% browse-remove
assert len(without["loss"]["query"]) == len(words)
assert without.attrs["verdict"] == "not_supported"  # one text is one draw

# %% browse-long
assert length > 1500
assert tiles["pooled_max"].size < 0.1 * 270 * length**2
