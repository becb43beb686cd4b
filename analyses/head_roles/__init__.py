"""Head roles: previous-token, induction, local and name-mover heads, by several detectors."""
