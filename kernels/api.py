"""The one face of the kernels: what probes, analyses and app use of them.

Beside it they import ``headscope.kernels.statistics``, the registry, and
``headscope.kernels.errors``. Names are imported when they are first used: what needs no tensors,
such as the cache folder, needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.kernels import memory as memory
    from headscope.kernels.attention import ENGINES as ENGINES
    from headscope.kernels.attention import Engine as Engine
    from headscope.kernels.attention import attend as attend
    from headscope.kernels.attention_spec import PLAIN as PLAIN
    from headscope.kernels.attention_spec import AttentionSpec as AttentionSpec
    from headscope.kernels.compiled.compiler import cache_folder as cache_folder
    from headscope.kernels.compiled.compiler import engine_fingerprint as engine_fingerprint
    from headscope.kernels.dense import attend_dense as attend_dense
    from headscope.kernels.differentiable import attend_differentiable as attend_differentiable
    from headscope.kernels.gradient_capture import capture_gradient as capture_gradient
    from headscope.kernels.one_head import head_statistics as head_statistics
    from headscope.kernels.one_head import head_weights as head_weights
    from headscope.kernels.panels.plan import MemoryEstimate as MemoryEstimate
    from headscope.kernels.panels.plan import estimate_memory as estimate_memory
    from headscope.kernels.products import Gradient as Gradient
    from headscope.kernels.products import pull as pull
    from headscope.kernels.products import push as push
    from headscope.kernels.request import Request as Request
    from headscope.kernels.weight_edits import WeightEdits as WeightEdits

_NAMES = {
    "attention": ("ENGINES", "Engine", "attend"),
    "attention_spec": ("PLAIN", "AttentionSpec"),
    "compiled.compiler": ("cache_folder", "engine_fingerprint"),
    "dense": ("attend_dense",),
    "differentiable": ("attend_differentiable",),
    "gradient_capture": ("capture_gradient",),
    "one_head": ("head_statistics", "head_weights"),
    "panels.plan": ("MemoryEstimate", "estimate_memory"),
    "products": ("Gradient", "pull", "push"),
    "request": ("Request",),
    "weight_edits": ("WeightEdits",),
}


def __getattr__(name: str) -> Any:
    if name == "memory":
        return importlib.import_module("headscope.kernels.memory")
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"headscope.kernels.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
