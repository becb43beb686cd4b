"""Docstring: the argument behind the one that was described last is to be described next.

L0H0 and L1H2 each write half of the argument before, at every argument of the definition. L0H1
copies the last described argument one place on; L1H0 takes it from there to the end, L1H1 from
where it stands, each half. The argument movers L2H0, L3H0 and L3H1 attend to the argument whose
argument before is that one, and copy it into the logits (Heimersheim & Janiak 2023).
"""

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.constructed.hand_set import OUT, TOKEN, HandSet, Score
from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, edges
from headscope.probes.prompts.tasks._words import KINDS

TASK, METRIC = "docstring", "logit_difference"
OPTIONS: dict[str, object] = {}
ROLES = {
    "previous argument": ((0, 0), (1, 2)),
    "previous token": ((0, 1),),
    "last argument": ((1, 0), (1, 1)),
    "argument mover": ((2, 0), (3, 0), (3, 1)),
}
HEADS = tuple(sorted(head for heads in ROLES.values() for head in heads))
_MOVERS = ("L2H0", "L3H0", "L3H1")
EDGES = (
    *edges(EMBEDDING, ("L0H0", "L0H1", "L1H1", "L1H2"), "v"),
    *edges("L0H1", "L1H0", "v"),
    *edges(("L0H0", "L1H2"), _MOVERS, "k"),
    *edges(("L1H0", "L1H1"), _MOVERS, "q"),
    *edges(EMBEDDING, _MOVERS, "v"),
    *edges(_MOVERS, LOGITS, ""),
)
ARGUMENTS, ADJECTIVES = KINDS["keys"][:20], KINDS["adjectives"][:10]
WORDS = ("open", "note", ",", ".", *ARGUMENTS, *ADJECTIVES)
# "<bos> open a, b, c, d, e, f. note c red big. note d new old. note"
DEFINED, LAST, END, POSITIONS = (2, 4, 6, 8, 10, 12), 20, 24, 32


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Set the weights."""
    names = ("before", "copied", "last", "aside")
    model = HandSet(
        WORDS, dict.fromkeys(names, ARGUMENTS) | {"other": ADJECTIVES},
        layers=4, heads=4, positions=POSITIONS,
    )  # fmt: skip
    token, out, before, copied, last, aside = (
        model.at(space, ARGUMENTS) for space in (TOKEN, OUT, *names)
    )
    for head in ROLES["previous argument"]:
        model.head(head, [*model.shift(2, DEFINED[1:]), model.rest()], token, before, 0.5)
    model.head((0, 1), [*model.shift(1, [LAST + 1]), model.rest()], token, copied)
    model.head((1, 0), [*model.shift(END - LAST - 1, [END]), model.rest()], copied, last, 0.5)
    model.head((1, 1), [*model.shift(END - LAST, [END]), model.rest()], token, last, 0.5)
    for head in ROLES["argument mover"]:
        # Half of the argument before, or of the last one, is not enough.
        scores = [*model.pairs("last", "before", ARGUMENTS), model.rest(30.0)]
        model.head(head, scores, token, out)
    # Of no use to the task: the last argument where nothing reads it, all arguments and adjectives
    # alike, and heads that attend somewhere and write nothing.
    words = model.at(TOKEN, ADJECTIVES), model.at("other", ADJECTIVES)
    model.head((0, 2), [*model.shift(END - LAST, [END]), model.rest()], token, aside)
    model.head((0, 3), [], *words)
    model.head((1, 3), model.pairs(TOKEN, TOKEN, ARGUMENTS))
    model.head((2, 1), [], token, aside)
    model.head((2, 2), model.shift(1, range(1, POSITIONS)), *words)
    model.head((2, 3), [model.rest()])
    model.head((3, 2), [], copied, aside)
    model.head((3, 3), [Score([], model.at(TOKEN, ["note"]))])
    return model.finish(5.0)
