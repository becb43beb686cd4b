"""Reports: what a run, a batch or a timeline found, as pages and tables."""
