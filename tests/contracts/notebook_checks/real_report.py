"""What the notebook real_report says, checked after each cell in its names."""

# %% report-run
assert float(measured["intact_lower"]) > 3  # logits: the model can do the task

# %% report-heads
assert measured.attrs["important_heads"]
assert int(measured["mean_ablation"].isnull().sum()) > 200  # screened out, and not 0

# %% report-methods
assert float(agreement.min()) < 0.9  # some methods part

# %% report-files
assert {"report.html", "heads.parquet", "heads.csv", "report.json"} <= set(files)
assert "logits" in page.read_text()
assert table.index.is_unique
