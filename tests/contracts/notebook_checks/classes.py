"""What the notebook classes says, checked after each cell in its names."""

import numpy as np

# %% classes-convention
assert (pair["transformer_lens"] < pair["induction"]).all()
assert set(viz.top(lens, "induction", number=5).index) == set(pair.index)

# %% classes-types-causal
accuracy = types["induction_accuracy"].to_series()
assert accuracy["intact"] > 0.95
assert accuracy["induction heads ablated"] < 0.1
assert accuracy["previous-token heads ablated"] < 0.1
assert accuracy["random other heads ablated"] > 0.7

# %% classes-agreement
assert kappa.loc["echo", "window"] > 0.8
assert kappa.loc["mass", "window"] < 0.5
spread_far = kinds["streaming_mass"].sel(layer=0) < 0.9
assert int(spread_far.sum()) >= 4
assert float(np.abs(kinds["window_cost"].sel(layer=0)).max()) < 0.01

# %% classes-vocabulary-assert
suppressors = set(viz.top(written, "copy_suppression", number=2).index)
costly = viz.top(written, "lost", number=6)
assert suppressors <= set(costly.index)
neither = (np.abs(written["name_mover"]) < 0.05) & (written["copy_suppression"] < 0.05)
assert float(written["lost"].where(neither).max()) > 1

# %% classes-weights
assert relations.attrs["heads_by_relation"]["name_copying"][0] == "L0H1"
assert float(relations["name_copying"].max()) > 0.9
assert relations["name_copying"].attrs["null"] < 0.1
