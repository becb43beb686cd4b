"""Experimental Triton engine, not yet run on a GPU: fused forward pass, then passes over weights.

Tests run its kernels in Triton's interpreter and compile them for real architectures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headscope.kernels.panels.engine import PanelEngine
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.statistic import Statistic
from headscope.kernels.triton import first_pass, sdpa
from headscope.kernels.triton.configuration import architecture
from headscope.kernels.triton.first_pass import FirstPass
from headscope.kernels.triton.launch import DEAD, LOG2E, Launch
from headscope.kernels.triton.plan import PASSES, Forward, forward_for, ways


@dataclass(frozen=True, eq=False)
class TritonEngine:
    """Statistics of one attention call, with the results of ``PanelEngine``."""

    panels: Panels
    forward: Forward | None = None

    def run(self, chosen: list[Statistic]) -> dict[str, Tensor]:
        """Compute the chosen statistics, by name."""
        launch = Launch(self.panels.q, self.panels.k, self.panels.v, self.panels.spec)
        names = [statistic.name for statistic in chosen]
        with torch.cuda.device(launch.q.get_device()):
            arch = architecture(launch.q.device)
            size, dtype = launch.q.shape[3], launch.q.dtype
            forward = self.forward or forward_for(arch, size, dtype, launch.spec)
            passes = ways(names, stock=forward == "stock")
            if forward == "stock":
                first = sdpa.run(launch)
            else:
                first = first_pass.run(
                    launch, max_weight="max_weight" in names, entropy="entropy" in names
                )
            results = leave(launch, first, names)
            for pass_name, run in PASSES.items():
                group = [name for name in names if passes[name] == pass_name]
                if group:
                    results |= run(launch, first.lse, group, self.panels.request)
            results |= self._finish(chosen, results, first)
            remaining = [statistic for statistic in chosen if passes[statistic.name] == "panels"]
            if remaining:
                results |= PanelEngine(self.panels).run(remaining)
        return {name: results[name] for name in names}

    def _finish(
        self, chosen: list[Statistic], results: dict[str, Tensor], first: FirstPass
    ) -> dict[str, Tensor]:
        """Divide totals by their counts, and blank the rows without keys."""
        finished = {}
        for statistic in chosen:
            if statistic.name not in results:
                continue
            result = results[statistic.name]
            if statistic.finish is not None:
                result = statistic.finish(result, self.panels.visibility, self.panels.request)
            if statistic.by_query:
                dead = (first.lse >= DEAD / 2).view(*first.lse.shape, *[1] * (result.ndim - 3))
                result = result.masked_fill_(dead, statistic.empty)
            finished[statistic.name] = result
        return finished


def leave(launch: Launch, first: FirstPass, names: list[str]) -> dict[str, Tensor]:
    """Return what the forward pass computed, in natural units."""
    results = {"z": first.z}
    if "lse" in names:
        results["lse"] = first.lse / LOG2E
    if "learned_sink_mass" in names:
        results["learned_sink_mass"] = torch.zeros_like(first.lse)
        if launch.sinks is not None:
            results["learned_sink_mass"] = torch.exp2(launch.sinks[:, None] - first.lse)
    optional = {"max_weight": first.max_weight, "entropy": first.entropy}
    return results | {name: result for name, result in optional.items() if result is not None}
