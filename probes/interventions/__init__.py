"""Interventions on attention heads, as values that compose in the order given.

Every module of this package is imported with it, so that an edit is one class in one file.
"""

import importlib
import pkgutil

from headscope.probes.interventions.attention_weights import (
    FixPattern,
    KnockOut,
    ScaleKeys,
    Temperature,
    Window,
)
from headscope.probes.interventions.base import Edit, Head
from headscope.probes.interventions.block_mask import Blocks
from headscope.probes.interventions.head_output import Ablate, Gate, Offset, Replace
from headscope.probes.interventions.io import load, save
from headscope.probes.interventions.named_patterns import Inject

__all__ = [
    "Ablate",
    "Blocks",
    "Edit",
    "FixPattern",
    "Gate",
    "Head",
    "Inject",
    "KnockOut",
    "Offset",
    "Replace",
    "ScaleKeys",
    "Temperature",
    "Window",
    "load",
    "save",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
