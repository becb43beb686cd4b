"""Exports: what a run says of its heads as tables and as a HeadVis tree."""
