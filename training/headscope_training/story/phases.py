"""The curriculum of the story model: what is trained on, at which length and rate, until when."""

from headscope_training.recipe import Phase
from headscope_training.story.rows import FILL, RowSource

BRACKETS = {"length": (3, 20), "depth": (2, 5)}
NEEDLE = {"span": (1, 3), "depth": (0.0, 1.0), "length": FILL}
SHORT = (
    RowSource("ioi", 1.5, answer=3.0, text=0.1),
    RowSource("story", 0.5, {"lines": (1, 4)}, answer=3.0, text=0.1),
    RowSource("greater_than", 1.0, answer=2.0, text=0.05),
    RowSource("brackets", 1.0, BRACKETS),
    RowSource("text", 0.3, text=0.1),
)
FEW = (
    RowSource("ioi", 2.0, answer=3.0, text=0.1),
    RowSource("greater_than", 0.3, answer=2.0, text=0.05),
    RowSource("brackets", 0.3, BRACKETS),
)


def _induction(
    share: float, low: int, high: int, distinct: bool = True, text: float = 0.0
) -> RowSource:
    """Random words said twice, halves of `low` to `high` words."""
    options = {"length": (low, high)} if distinct else {"length": (low, high), "distinct": False}
    return RowSource("induction", share, options, text=text)


def _bare_recall(share: float, low: int, high: int, text: float = 0.0) -> RowSource:
    """Facts and questions without sentences between them."""
    return RowSource("recall", share, {"pairs": (low, high), "bare": True}, text=text)


PHASES = (
    Phase(
        1500,
        2e-3,
        ((96, 1.0),),
        (*SHORT, _induction(3, 4, 24), _induction(1, 4, 24, False), _bare_recall(3, 4, 20)),
    ),
    Phase(
        2500,
        2e-3,
        ((96, 1.0),),
        (*FEW, _induction(4, 2, 8), _induction(2, 4, 24), _bare_recall(2, 2, 6)),
    ),
    Phase(
        3000,
        2e-3,
        ((96, 1.0),),
        (
            *FEW,
            _induction(2, 2, 8),
            _induction(3, 4, 24),
            _induction(1, 4, 24, False),
            _bare_recall(1.5, 2, 6),
            _bare_recall(1.5, 4, 16),
        ),
    ),
    Phase(
        3500,
        2e-3,
        ((96, 0.5), (192, 0.5)),
        (
            *SHORT,
            _induction(2, 4, 48),
            _induction(1, 4, 48, False),
            _bare_recall(1.5, 4, 40),
            RowSource("recall", 1.5, {"pairs": (2, 12)}),
            RowSource("recall", 1.5, {"pairs": (2, 6), "length": FILL}, text=0.05),
        ),
    ),
    Phase(
        4500,
        1.5e-3,
        ((96, 0.2), (192, 0.2), (512, 0.6)),
        (
            *SHORT,
            _induction(2, 8, 250),
            _induction(1, 8, 250, False),
            _bare_recall(1, 8, 64),
            RowSource("recall", 2.0, {"pairs": (2, 9), "length": FILL}, answer=2.0, text=0.02),
            RowSource("needle", 1.0, NEEDLE, answer=10.0, text=0.02),
        ),
    ),
    # From here on the unpredictable words count a little too, so heads with nothing to copy must
    # stay quiet: that is what attention sinks are for.
    Phase(
        6000,
        1.2e-3,
        ((96, 0.2), (192, 0.15), (512, 0.35), (1024, 0.3)),
        (
            RowSource("ioi", 1.5, answer=3.0, text=0.2),
            RowSource("story", 1.0, {"lines": (1, 8)}, answer=3.0, text=0.2),
            RowSource("greater_than", 1.0, answer=2.0, text=0.1),
            RowSource("brackets", 1.5, BRACKETS, answer=2.0, text=0.1),
            RowSource("text", 0.5, text=0.2),
            _induction(2, 8, 300, text=0.1),
            _induction(1, 8, 500, False, text=0.1),
            _bare_recall(1, 8, 64, text=0.1),
            RowSource("recall", 2.0, {"pairs": (2, 9), "length": FILL}, answer=2.0, text=0.1),
            RowSource("needle", 1.5, NEEDLE, answer=10.0, text=0.1),
        ),
        falls=True,
    ),
)
