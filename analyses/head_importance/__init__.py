"""Head importance: what a task loses without a head, and whether methods agree on it."""
