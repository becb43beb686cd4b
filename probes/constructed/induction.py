"""Induction: previous-token heads write what came before, and later heads match their own token.

L0H0 and L0H1 each write half of the token before. L1H0, L2H0 and L2H1 attend to the position whose
token before is theirs, and copy what stands there into the logits (Elhage et al. 2021).
"""

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.constructed.hand_set import OUT, POSITION, TOKEN, HandSet
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
POSITIONS = 66


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Set the weights."""
    spaces = dict.fromkeys(("previous", "aside", "other"), WORDS)
    model = HandSet(WORDS, spaces, layers=3, heads=4, positions=POSITIONS)
    before = model.shift(1, range(1, POSITIONS))
    token, out, previous, aside = (
        model.at(space, WORDS) for space in (TOKEN, OUT, "previous", "aside")
    )
    for head in ROLES["previous token"]:
        model.head(head, before, token, previous, 0.5)
    for head in ROLES["induction"]:
        # Half of a match is less than the rest.
        scores = [*model.pairs(TOKEN, "previous", WORDS), model.rest(30.0)]
        model.head(head, scores, token, out)
    # Of no use to the task: the token two places back, the first word, what L0H2 wrote, all words
    # alike, and heads that attend somewhere and write nothing.
    model.head((0, 2), model.shift(2, range(2, POSITIONS)), token, aside)
    model.head((0, 3), model.pairs(TOKEN, TOKEN, WORDS))
    model.head((1, 1), before, aside, model.at("other"))
    model.head((1, 2), [model.rest()], model.at(POSITION)[: len(WORDS)], model.at("other"))
    model.head((1, 3), [], token, model.at("other"))
    model.head((2, 2), before)
    model.head((2, 3), [], token, model.at("other"))
    return model.finish(5.0)
