"""Comparison: two results, two circuits, or one model with and without edits.

These functions read two inputs at once, so they are no analyses of a run: `compare` holds two
results or captures against each other head by head, `Circuit` is a set of heads or edges with its
scores and where it came from, `overlap` says how much two of them share, `export` writes one for
graph programs, `restore` edits the attention of chosen heads back, `what_if` answers what a task or
a text is like under edits. On the command line: ``headscope compare RUN_A RUN_B``.
"""

from headscope.analyses.comparison.circuit import Circuit, find, from_result, load, removed, save
from headscope.analyses.comparison.circuit_export import export, to_graph
from headscope.analyses.comparison.difference import compare
from headscope.analyses.comparison.overlapping import overlap
from headscope.analyses.comparison.question import what_if
from headscope.analyses.comparison.restoration import own_patterns, restore

__all__ = [
    "Circuit",
    "compare",
    "export",
    "find",
    "from_result",
    "load",
    "overlap",
    "own_patterns",
    "removed",
    "restore",
    "save",
    "to_graph",
    "what_if",
]
