"""The one face of the kernels: what probes, analyses and app use of them.

Beside it they import ``headscope.kernels.statistics``, the registry, and
``headscope.kernels.errors``.
"""

from headscope.kernels import memory
from headscope.kernels.attention import ENGINES, Engine, attend
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.compiled.compiler import cache_folder, engine_fingerprint
from headscope.kernels.dense import attend_dense
from headscope.kernels.differentiable import attend_differentiable
from headscope.kernels.gradient_capture import capture_gradient
from headscope.kernels.one_head import head_statistics, head_weights
from headscope.kernels.panels.plan import MemoryEstimate, estimate_memory
from headscope.kernels.products import Gradient, pull, push
from headscope.kernels.request import Request
from headscope.kernels.weight_edits import WeightEdits

__all__ = [
    "ENGINES",
    "PLAIN",
    "AttentionSpec",
    "Engine",
    "Gradient",
    "MemoryEstimate",
    "Request",
    "WeightEdits",
    "attend",
    "attend_dense",
    "attend_differentiable",
    "cache_folder",
    "capture_gradient",
    "engine_fingerprint",
    "estimate_memory",
    "head_statistics",
    "head_weights",
    "memory",
    "pull",
    "push",
]
