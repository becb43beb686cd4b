"""Probes: models, capture, edits, tasks and their storage.

Importing this package, and listing the tasks in it, imports neither torch nor transformers.
"""

from headscope.probes.capture import capture
from headscope.probes.checkpoints import checkpoints
from headscope.probes.lens import pattern
from headscope.probes.model import Model, load_model
from headscope.probes.pair import Pair
from headscope.probes.plan import plan

__all__ = ["Model", "Pair", "capture", "checkpoints", "load_model", "pattern", "plan"]
