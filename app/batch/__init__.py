"""One job over many models, tasks, analyses and seeds, into one table."""
