"""What users touch: command line, dashboard, report."""
