"""Greater-than: heads carry the start year to the end, where MLPs raise every later year.

L0H0 and L0H2 copy the start year one and two places on, where L1H0 and L2H1, and L1H1, take it
from; L2H0 takes it from where it stands. The MLPs of layers 1 and 2 add to the logits of all years
behind what has arrived by then (Hanna et al. 2305.00586).
"""

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope.probes.constructed.hand_set import OUT, TOKEN, HandSet
from headscope.probes.constructed.known_circuit import EMBEDDING, LOGITS, edges
from headscope.probes.prompts.tasks._words import KINDS

TASK, METRIC = "greater_than", "probability_difference"
OPTIONS = {"low": 20, "high": 70}
ROLES = {"year copying": ((0, 0), (0, 2)), "year moving": ((1, 0), (1, 1), (2, 0), (2, 1))}
HEADS = tuple(head for heads in ROLES.values() for head in heads)
_MLPS = ("L1.mlp", "L2.mlp")
EDGES = (
    *edges(EMBEDDING, ("L0H0", "L0H2", "L2H0"), "v"),
    *edges("L0H0", ("L1H0", "L2H1"), "v"),
    *edges("L0H2", "L1H1", "v"),
    *edges(("L1H0", "L1H1"), _MLPS, ""),
    *edges(("L2H0", "L2H1"), "L2.mlp", ""),
    *edges(_MLPS, LOGITS, ""),
)
YEARS, EVENTS = KINDS["numbers"], KINDS["events"]
WORDS = (*["The", "lasted", "from", "the", "year", "to"], *EVENTS, *YEARS)
# "<bos> The war lasted from the year 17 32 to the year 17"
EVENT, START, FIRST, SECOND, END, POSITIONS = 2, 8, 9, 10, 12, 16


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Set the weights."""
    spaces = {"copied": YEARS, "arrived": YEARS, "aside": YEARS, "event": EVENTS}
    model = HandSet(WORDS, spaces, layers=3, heads=4, positions=POSITIONS, neurons=len(YEARS))
    token, copied, arrived, aside = (
        model.at(space, YEARS) for space in (TOKEN, "copied", "arrived", "aside")
    )

    def move(head: tuple[int, int], start: int, end: int, reads: list[int], to: list[int]) -> None:
        scale = 0.5 if to is arrived else 1.0
        model.head(
            head, [*model.shift(end - start, [end], 2 * 40.0), model.rest()], reads, to, scale
        )

    move((0, 0), START, FIRST, token, copied)
    move((0, 2), START, SECOND, token, copied)
    move((1, 0), FIRST, END, copied, arrived)
    move((1, 1), SECOND, END, copied, arrived)
    move((2, 0), START, END, token, arrived)
    move((2, 1), FIRST, END, copied, arrived)
    later = [model.at(OUT, YEARS[year + 1 :]) for year in range(len(YEARS))]
    model.mlp(1, arrived, later, 1.5)
    model.mlp(2, arrived, later, 1.0)
    # Of no use to the task: the event and the start year where nothing reads them, and heads that
    # look somewhere and write nothing.
    events = model.at(TOKEN, EVENTS), model.at("event", EVENTS)
    move((0, 1), EVENT, END, *events)
    model.head((0, 3), [], *events)
    move((1, 2), START, END, token, aside)
    model.head((1, 3), model.pairs(TOKEN, TOKEN, YEARS))
    model.head((2, 2), model.shift(1, range(1, POSITIONS)), token, aside)
    model.head((2, 3), [model.rest()])
    return model.finish(1.0)
