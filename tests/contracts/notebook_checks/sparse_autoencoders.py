"""What the notebook sparse_autoencoders says, checked after each cell in its names."""

# %% sae-training
assert abs(float(sae.decoder.norm(dim=1).mean()) - 1) < 1e-5

# %% sae-measured
explained, kept = found["explained_variance"].values, found["recovered_from_mean"].values
assert explained[0] > max(explained[1:]) + 0.05
assert kept[0] > max(kept[1:])
assert found.attrs["verdict"] == "supported"

# %% sae-features
assert (table["words_lost"] > 0).mean() > 0.5

# %% sae-saelens
assert bool((again.decoder == sae.decoder).all())
