"""The curriculum of the bundled model: what is trained on, at which length and rate, until when."""

from __future__ import annotations

from dataclasses import dataclass

from headscope.probes.bundled.corpus import FILL, Source


@dataclass(frozen=True)
class Phase:
    """Steps up to `until` with one mixture; `lengths` is a choice of row lengths with shares."""

    until: int
    rate: float
    lengths: tuple[tuple[int, float], ...]
    sources: tuple[Source, ...]


NEEDLE = {"span": (1, 3), "depth": (0.0, 1.0), "length": FILL}
SHORT = (
    Source("ioi", 1.5, answer=3.0, text=0.1),
    Source("story", 0.5, {"lines": (1, 4)}, answer=3.0, text=0.1),
    Source("greater_than", 1.0, answer=2.0, text=0.05),
    Source("brackets", 1.0, {"length": (3, 20), "depth": (2, 5)}, answer=1.0),
    Source("text", 0.3, text=0.1),
)
FEW = (
    Source("ioi", 2.0, answer=3.0, text=0.1),
    Source("greater_than", 0.3, answer=2.0, text=0.05),
    Source("brackets", 0.3, {"length": (3, 20), "depth": (2, 5)}, answer=1.0),
)
PHASES = (
    Phase(
        1500,
        2e-3,
        ((96, 1.0),),
        (
            *SHORT,
            Source("induction", 3.0, {"length": (4, 24)}),
            Source("induction", 1.0, {"length": (4, 24), "distinct": False}),
            Source("recall", 3.0, {"pairs": (4, 20), "bare": True}),
        ),
    ),
    Phase(
        2500,
        2e-3,
        ((96, 1.0),),
        (
            *FEW,
            Source("induction", 4.0, {"length": (2, 8)}),
            Source("induction", 2.0, {"length": (4, 24)}),
            Source("recall", 2.0, {"pairs": (2, 6), "bare": True}),
        ),
    ),
    Phase(
        3000,
        2e-3,
        ((96, 1.0),),
        (
            *FEW,
            Source("induction", 2.0, {"length": (2, 8)}),
            Source("induction", 3.0, {"length": (4, 24)}),
            Source("induction", 1.0, {"length": (4, 24), "distinct": False}),
            Source("recall", 1.5, {"pairs": (2, 6), "bare": True}),
            Source("recall", 1.5, {"pairs": (4, 16), "bare": True}),
        ),
    ),
    Phase(
        3500,
        2e-3,
        ((96, 0.5), (192, 0.5)),
        (
            *SHORT,
            Source("induction", 2.0, {"length": (4, 48)}),
            Source("induction", 1.0, {"length": (4, 48), "distinct": False}),
            Source("recall", 1.5, {"pairs": (4, 40), "bare": True}),
            Source("recall", 1.5, {"pairs": (2, 12)}),
            Source("recall", 1.5, {"pairs": (2, 6), "length": FILL}, text=0.05),
        ),
    ),
    Phase(
        4500,
        1.5e-3,
        ((96, 0.2), (192, 0.2), (512, 0.6)),
        (
            *SHORT,
            Source("induction", 2.0, {"length": (8, 250)}),
            Source("induction", 1.0, {"length": (8, 250), "distinct": False}),
            Source("recall", 1.0, {"pairs": (8, 64), "bare": True}),
            Source("recall", 2.0, {"pairs": (2, 9), "length": FILL}, answer=2.0, text=0.02),
            Source("needle", 1.0, NEEDLE, answer=10.0, text=0.02),
        ),
    ),
    # From here on the unpredictable words count a little too, so heads with nothing to copy must
    # stay quiet: that is what attention sinks are for.
    Phase(
        6000,
        1.2e-3,
        ((96, 0.2), (192, 0.15), (512, 0.35), (1024, 0.3)),
        (
            Source("ioi", 1.5, answer=3.0, text=0.2),
            Source("story", 1.0, {"lines": (1, 8)}, answer=3.0, text=0.2),
            Source("greater_than", 1.0, answer=2.0, text=0.1),
            Source("brackets", 1.5, {"length": (3, 20), "depth": (2, 5)}, answer=2.0, text=0.1),
            Source("text", 0.5, text=0.2),
            Source("induction", 2.0, {"length": (8, 300)}, text=0.1),
            Source("induction", 1.0, {"length": (8, 500), "distinct": False}, text=0.1),
            Source("recall", 1.0, {"pairs": (8, 64), "bare": True}, text=0.1),
            Source("recall", 2.0, {"pairs": (2, 9), "length": FILL}, answer=2.0, text=0.1),
            Source("needle", 1.5, NEEDLE, answer=10.0, text=0.1),
        ),
    ),
)
