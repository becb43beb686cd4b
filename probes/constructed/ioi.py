"""Indirect-object identification, with heads of the roles that GPT-2 small has.

L0H0 and L1H1 are duplicate-token heads: at the second subject they find the first. L0H1 is a
previous-token head, and L1H0 an induction head that finds the place behind the first subject; all
three write a third of the repeated name. The S-inhibition heads L2H0 and L2H1 carry it to the end,
where the name movers L3H0 and L3H1 attend to both names, less at the repeated one, and copy what
they find into the logits (Wang et al. 2211.00593).
"""

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.constructed.hand_set import OUT, POSITION, SHARP, TOKEN, HandSet, Score
from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, edges
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.tasks.ioi import TEMPLATES
from headscope.probes.prompts.writing import split

TASK, METRIC = "ioi", "logit_difference"
OPTIONS = {"corruption": "names"}
ROLES = {
    "duplicate token": ((0, 0), (1, 1)),
    "previous token": ((0, 1),),
    "induction": ((1, 0),),
    "S-inhibition": ((2, 0), (2, 1)),
    "name mover": ((3, 0), (3, 1)),
}
HEADS = tuple(sorted(head for heads in ROLES.values() for head in heads))
_REPEATED, _INHIBITION, _MOVERS = ("L0H0", "L1H0", "L1H1"), ("L2H0", "L2H1"), ("L3H0", "L3H1")
EDGES = (
    *edges(EMBEDDING, ("L0H0", "L1H1"), "qkv"),
    *edges(EMBEDDING, "L0H1", "v"),
    *edges(EMBEDDING, "L1H0", "q"),
    *edges("L0H1", "L1H0", "kv"),
    *edges(_REPEATED, _INHIBITION, "kv"),
    *edges(_INHIBITION, _MOVERS, "q"),
    *edges(EMBEDDING, _MOVERS, "kv"),
    *edges(_MOVERS, LOGITS, ""),
)
NAMES, PLACED, THINGS = KINDS["names"][:12], KINDS["places"][:4], KINDS["things"][:4]
# Where every template has the two names; the longest has 19 words.
NAMED, POSITIONS = (2, 4), 24


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Set the weights."""
    blank = dict.fromkeys(("A", "B", "S", "PLACE", "THING"), " ")
    plain = [word for template in TEMPLATES for word in split(template.format(**blank, END="to"))]
    names = ("previous", "repeated", "inhibited", "aside", "other")
    model = HandSet(
        (*plain, *NAMES, *PLACED, *THINGS), dict.fromkeys(names, NAMES),
        layers=4, heads=4, positions=POSITIONS,
    )  # fmt: skip
    token, out, previous, repeated, inhibited, aside, other = (
        model.at(space, NAMES) for space in (TOKEN, OUT, *names)
    )
    before = model.shift(1, range(1, POSITIONS))
    for head in ROLES["duplicate token"]:
        scores = [*model.pairs(TOKEN, TOKEN, NAMES), *model.not_itself(), model.rest()]
        model.head(head, scores, token, repeated, 1 / 3)
    model.head((0, 1), before, token, previous)
    model.head(
        (1, 0), [*model.pairs(TOKEN, "previous", NAMES), model.rest()], previous, repeated, 1 / 3
    )
    for head in ROLES["S-inhibition"]:
        # Two of the three that write are not enough.
        scores = [Score([], repeated, 60.0), model.rest(50.0)]
        model.head(head, scores, repeated, inhibited, 0.5)
    for head in ROLES["name mover"]:
        less = model.pairs("inhibited", TOKEN, NAMES, -4.0)
        model.head(head, [Score([], model.at(POSITION, NAMED), SHARP), *less], token, out)
    # Of no use to the task: the first name, what L0H2 wrote, all names alike, the place and thing
    # into logits that no answer has, and heads that attend somewhere and write nothing.
    things = (*PLACED, *THINGS)
    model.head((0, 2), [Score([], model.at(POSITION, NAMED[:1]))], token, aside)
    model.head((0, 3), [], token, other)
    model.head((1, 2), before, aside, other)
    model.head((1, 3), before)
    model.head((2, 2), [], model.at(TOKEN, things), model.at(OUT, things))
    model.head((2, 3), [model.rest()])
    model.head((3, 2), [], model.at(TOKEN, things), model.at(OUT, things))
    model.head((3, 3), model.pairs(TOKEN, TOKEN, NAMES))
    return model.finish(5.0)
