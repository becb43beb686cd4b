"""AttnLRP: relevance propagated through softmax and products as well, by the package lxt.

All rules come from the optional package ``lxt``, which is installed apart (``pip install --no-deps
lxt``); nothing of them is written here. Its licence (Clear BSD) grants no patent rights, and its
authors say of LRP: a patented technology that can only be used free of charge for personal and
scientific purposes. The first use says so in a warning.
Source: Achtibat et al., AttnLRP (2402.05602).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor, nn

from headscope.analyses._relevance.trace import Passed, Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import Reader
from headscope.probes.attention.interface import AttentionCall

SIGNED = True

NOTICE = (
    "AttnLRP comes from lxt (Fraunhofer-Gesellschaft and its authors), whose licence, Clear BSD, "
    "grants no patent rights; its authors say that LRP is a patented technology that can only be "
    "used free of charge for personal and scientific purposes"
)
INSTALL = "pip install --no-deps lxt"
PACKAGES = ("lxt.efficient", "lxt.efficient.models")


def relevance(trace: Trace) -> Array:
    """Return the relevance of every token (token,), logits; NotApplicable without lxt."""
    other = AttnTrace(trace.model, trace.target)
    parts = other.embedding.double() * other.embedding_gradient.double()
    return np.asarray(parts.sum(-1).cpu().numpy())


class AttnReader(Reader):
    """Answer attention calls inside the wrapper of lxt, which changes the gradients alone."""

    def __call__(self, call: AttentionCall) -> Tensor:
        """Compute one layer."""

        def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            changed = replace(call, query=query, key=key, value=value)
            return super(AttnReader, self).__call__(changed)

        wrapped = _rules("patches").wrap_attention_forward(forward)
        z: Tensor = wrapped(call.module, call.query, call.key, call.value)
        return z


class AttnTrace(Trace):
    """A trace whose gradients are those of AttnLRP."""

    reader = AttnReader

    def _pass(self, *, gradients: bool) -> Passed:
        with patched(self.model.module):
            return super()._pass(gradients=gradients)


@contextmanager
def patched(module: nn.Module) -> Iterator[None]:
    """Set lxt's forward methods on the modules of one model; its classes stay as they are."""
    family = type(module).__module__.rsplit(".", 1)[-1].removeprefix("modeling_")
    _notice()
    try:
        rules = _rules(f"models.{family}").attnLRP
    except ImportError as error:
        raise NotApplicable(
            f"model: lxt has no rules for {family} that load with this transformers; use lrp"
        ) from error
    changed: list[Any] = []
    try:
        for target, patch in rules.items():
            if not isinstance(target, type):
                continue  # the attention, which `AttnReader` wraps
            for part in module.modules():
                if type(part) is target:
                    part.forward = types.MethodType(patch.args[0], part)
                    changed.append(part)
        yield
    finally:
        for part in changed:
            del part.forward


def _rules(name: str) -> Any:
    """Import a module of lxt without its packages' own code.

    They import the rules of every architecture, of which some do not load with transformers 5.
    """
    spec = importlib.util.find_spec("lxt")
    if spec is None or not spec.submodule_search_locations:
        raise NotApplicable(f"lxt: AttnLRP needs this optional package; {INSTALL}")
    folder = spec.submodule_search_locations[0]
    before = {package_name: sys.modules.pop(package_name, None) for package_name in PACKAGES}
    try:
        for package_name in PACKAGES:
            package = types.ModuleType(package_name)
            package.__path__ = [folder + package_name.removeprefix("lxt").replace(".", "/")]
            sys.modules[package_name] = package
        return importlib.import_module(f"lxt.efficient.{name}")
    finally:
        for package_name, module in before.items():
            del sys.modules[package_name]
            if module is not None:
                sys.modules[package_name] = module


@cache
def _notice() -> None:
    if importlib.util.find_spec("lxt") is not None:
        warnings.warn(NOTICE, UserWarning, stacklevel=2)
