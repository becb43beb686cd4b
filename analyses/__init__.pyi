from types import ModuleType
from typing import Any

from headscope.analyses._runtime.options import Option
from headscope.analyses.attribution import block_influence as block_influence
from headscope.analyses.attribution import contributions as contributions
from headscope.analyses.attribution import faithfulness as faithfulness
from headscope.analyses.attribution import gradient_relevance as gradient_relevance
from headscope.analyses.attribution import logit_attribution as logit_attribution
from headscope.analyses.attribution import lrp as lrp
from headscope.analyses.attribution import rollout as rollout
from headscope.analyses.attribution import routes as routes
from headscope.analyses.circuits import circuit_methods as circuit_methods
from headscope.analyses.circuits import communication as communication
from headscope.analyses.circuits import edge_attribution as edge_attribution
from headscope.analyses.circuits import edge_circuits as edge_circuits
from headscope.analyses.circuits import qk_attribution as qk_attribution
from headscope.analyses.circuits import sae_circuits as sae_circuits
from headscope.analyses.circuits import sae_features as sae_features
from headscope.analyses.conditions import context_reliance as context_reliance
from headscope.analyses.conditions import contrast as contrast
from headscope.analyses.conditions import probing as probing
from headscope.analyses.conditions import prompt_pairs as prompt_pairs
from headscope.analyses.head_importance import importance as importance
from headscope.analyses.head_importance import injection as injection
from headscope.analyses.head_importance import patching as patching
from headscope.analyses.head_importance import pruning as pruning
from headscope.analyses.head_importance import reliability as reliability
from headscope.analyses.head_importance import task_vectors as task_vectors
from headscope.analyses.head_importance import tuning as tuning
from headscope.analyses.head_roles import classes as classes
from headscope.analyses.head_roles import head_lens as head_lens
from headscope.analyses.head_roles import head_types as head_types
from headscope.analyses.head_roles import text_basis as text_basis
from headscope.analyses.head_roles import vocabulary as vocabulary
from headscope.analyses.head_roles import weight_relations as weight_relations
from headscope.analyses.pattern_shape import blocks as blocks
from headscope.analyses.pattern_shape import concentration as concentration
from headscope.analyses.pattern_shape import depth_profile as depth_profile
from headscope.analyses.pattern_shape import entropy as entropy
from headscope.analyses.pattern_shape import feature_maps as feature_maps
from headscope.analyses.pattern_shape import parallel_context as parallel_context
from headscope.analyses.pattern_shape import position_bias as position_bias
from headscope.analyses.pattern_shape import preplan_anchor as preplan_anchor
from headscope.analyses.pattern_shape import span as span
from headscope.analyses.qk_geometry import atlas as atlas
from headscope.analyses.qk_geometry import embedding as embedding
from headscope.analyses.qk_geometry import frequencies as frequencies
from headscope.analyses.qk_geometry import head_rank as head_rank
from headscope.analyses.qk_geometry import positionality as positionality
from headscope.analyses.qk_geometry import similarity as similarity
from headscope.analyses.retrieval_heads import latent_retrieval as latent_retrieval
from headscope.analyses.retrieval_heads import lookback as lookback
from headscope.analyses.retrieval_heads import needle_sweep as needle_sweep
from headscope.analyses.retrieval_heads import query_focus as query_focus
from headscope.analyses.retrieval_heads import retrieval as retrieval
from headscope.analyses.sink_behavior import massive as massive
from headscope.analyses.sink_behavior import sink_calibration as sink_calibration
from headscope.analyses.sink_behavior import sink_controls as sink_controls
from headscope.analyses.sink_behavior import sink_topology as sink_topology
from headscope.analyses.sink_behavior import sinks as sinks
from headscope.analyses.token_groups import distractors as distractors
from headscope.analyses.token_groups import lifetimes as lifetimes
from headscope.analyses.token_groups import offsets as offsets
from headscope.analyses.token_groups import segments as segments
from headscope.analyses.token_groups import token_classes as token_classes

TOOLS = ("comparison", "series")
RENAMED = {
    "depth": "depth_profile",
    "hardness": "concentration",
    "literal": "latent_retrieval",
    "ranks": "head_rank",
    "rhythm": "preplan_anchor",
    "slots": "position_bias",
}

def names() -> list[str]:
    """List the analyses, without importing them.

    Examples
    --------
    >>> "sinks" in names()
    True
    """
    ...

def families() -> dict[str, list[str]]:
    """List the analyses by family, without importing them.

    Examples
    --------
    >>> "sae_circuits" in families()["circuits"]
    True
    """
    ...

def heading(family: str) -> str:
    """Return the first line of a family's docstring: its heading wherever analyses are listed.

    >>> heading("circuits")
    'Circuits: through which heads and edges an answer comes.'
    """
    ...

def current(name: str) -> str:
    """Return the name of an analysis, given that or an earlier one, which warns."""
    ...

def load(name: str) -> ModuleType:
    """Import one analysis by name.

    Examples
    --------
    >>> load("sinks").NEEDS
    ('received',)
    """
    ...

def summary(name: str) -> str:
    """Return the first line of an analysis' docstring, without importing it.

    >>> summary("sinks")
    'Attention sinks: heads that park their attention on a few tokens.'
    """
    ...

def docstring(name: str) -> str:
    """Return what an analysis says of itself, without importing it."""
    ...

def needs(*selected: str) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of ``capture`` that some analyses need.

    ``stats`` and ``keep``, and ``offsets`` and ``targets`` where one of them names some.

    Examples
    --------
    >>> needs("sinks", "frequencies")
    {'stats': ('received', 'lse'), 'keep': ('q', 'k')}
    >>> from headscope.probes import capture
    >>> cap = capture("headscope/bundled", [[0, 5, 6, 7]], **needs("sinks", "frequencies"))
    >>> load("sinks").run(cap)["sink"].dims
    ('layer', 'head')
    """
    ...

def options(name: str) -> dict[str, Option]:
    """Return the options of an analysis, read from the signature and docstring of ``run``.

    Examples
    --------
    >>> options("sinks")["epsilon"].default
    0.3
    """
    ...
