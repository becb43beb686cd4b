"""What several analyses are made of: results and their intervals, trials, edits, the runner."""
