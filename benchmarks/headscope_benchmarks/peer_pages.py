"""Pages of BertViz and of CircuitsVis, written by a Python that has them; headscope is not needed.

``PYTHON -P peer_pages.py NAME WEIGHTS.npz PAGE.html`` prints the seconds that it took. The file
has ``weights`` (head, query, key) and ``tokens``.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("BertViz", "CircuitsVis")


def page(name: str, weights: Any, tokens: list[str]) -> str:
    """Return the page that one of the libraries shows in a notebook."""
    if name == "BertViz":
        import torch
        from bertviz import head_view  # type: ignore[import-not-found]

        return str(head_view((torch.from_numpy(weights)[None],), tokens, html_action="return").data)
    from circuitsvis.attention import (  # type: ignore[import-not-found]
        attention_pattern,
        attention_patterns,
    )

    # With its script in it, as it is shown without a network.
    if len(weights) == 1:
        return str(attention_pattern(tokens=tokens, attention=weights[0]).local_src)
    return str(attention_patterns(tokens=tokens, attention=weights).local_src)


def main() -> None:
    """Write one page."""
    name, source, target = sys.argv[1:]
    with np.load(source) as archive:
        weights, tokens = archive["weights"], archive["tokens"].tolist()
    start = time.perf_counter()
    html = page(name, weights, tokens)
    head = '<!doctype html><html><head><meta charset="utf-8"></head><body>'
    Path(target).write_text(f"{head}{html}</body></html>", encoding="utf-8")
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
