"""Documents of a context, and what a question's attention to them adds to a null question's."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from headscope.analyses._stats.bootstrap import Array

# A token this many standard deviations below its document's mean is left out of the sum.
DROPPED = 2.0


def documents(text: str) -> list[tuple[int, int]]:
    """Split a text into sentences, as spans of characters; the last may lack its full stop."""
    stops = [match.end() for match in re.finditer(r"\.(?=\s|$)", text)]
    cuts = [0, *stops, *([len(text)] if not stops or text[stops[-1] :].strip() else [])]
    return list(pairwise(cuts))


def document_scores(weights: Array, positions: Sequence[Sequence[int]]) -> Array:
    """Sum the attention of every head over each document, without its low outliers.

    ``weights`` (layer, head, key) come from the question's tokens, ``positions`` are the token
    positions of each document; scores (document, layer, head).

    Source: Zhang et al., Query-Focused Retrieval Heads (2506.09944): per document, tokens at or
    below the mean minus two standard deviations are dropped, the others summed.
    """
    scores = []
    for position in positions:
        part = weights[..., list(position)]
        if len(position) < 2:
            scores.append(part.sum(-1))
            continue
        least = part.mean(-1) - DROPPED * part.std(-1, ddof=1)
        # Equal weights have no spread and no outlier; the sign of their rounding must not decide.
        kept = (part > least[..., None]) | (np.ptp(part, axis=-1) < 1e-12)[..., None]
        scores.append(np.where(kept | np.isnan(part), part, 0.0).sum(-1))
    return np.stack(scores)
