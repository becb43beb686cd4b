"""What runs an analysis: its inputs, options, requirements and results."""
