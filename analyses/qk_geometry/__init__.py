"""Query-key geometry: the spaces in which heads compare tokens, and which heads are similar."""
