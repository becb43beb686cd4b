"""Induction: previous-token heads write what came before, and later heads look for their own token.

L0H0 and L0H1 each write half of the token before. L1H0, L2H0 and L2H1 look for the place whose
token before is theirs, and copy what stands there into the logits (Elhage et al. 2021).
"""

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.constructed.hand_set import OUT, PLACE, TOKEN, HandSet
from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, edges
from headscope.probes.prompts.tasks._words import KINDS

TASK, METRIC = "induction", "logit_difference"
OPTIONS = {"length": 12}
ROLES = {"previous token": ((0, 0), (0, 1)), "induction": ((1, 0), (2, 0), (2, 1))}
HEADS = tuple(head for heads in ROLES.values() for head in heads)
_PREVIOUS, _INDUCTION = ("L0H0", "L0H1"), ("L1H0", "L2H0", "L2H1")
EDGES = (
    *edges(EMBEDDING, _PREVIOUS, "v"),
    *edges(_PREVIOUS, _INDUCTION, "k"),
    *edges(EMBEDDING, _INDUCTION, "v"),
    *edges(_INDUCTION, LOGITS, ""),
)
WORDS = KINDS["keys"][:40]
PLACES = 66


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Set the weights."""
    spaces = dict.fromkeys(("previous", "aside", "other"), WORDS)
    made = HandSet(WORDS, spaces, layers=3, heads=4, places=PLACES)
    before = made.shift(1, range(1, PLACES))
    token, out, previous, aside = (
        made.at(space, WORDS) for space in (TOKEN, OUT, "previous", "aside")
    )
    for head in ROLES["previous token"]:
        made.head(head, before, token, previous, 0.5)
    for head in ROLES["induction"]:
        # Half of a match is less than the rest.
        scores = [*made.pairs(TOKEN, "previous", WORDS), made.rest(30.0)]
        made.head(head, scores, token, out)
    # Of no use to the task: the token two places back, the first word, what L0H2 wrote, all words
    # alike, and heads that look somewhere and write nothing.
    made.head((0, 2), made.shift(2, range(2, PLACES)), token, aside)
    made.head((0, 3), made.pairs(TOKEN, TOKEN, WORDS))
    made.head((1, 1), before, aside, made.at("other"))
    made.head((1, 2), [made.rest()], made.at(PLACE)[: len(WORDS)], made.at("other"))
    made.head((1, 3), [], token, made.at("other"))
    made.head((2, 2), before)
    made.head((2, 3), [], token, made.at("other"))
    return made.finish(5.0)
