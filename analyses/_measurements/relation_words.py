"""Word pairs of relations, source and target, that common tokenizers hold as one token each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headscope.kernels.errors import NotApplicable
from headscope.probes.prompts.tasks._words import KINDS

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Fewer pairs than that say little about a relation.
LEAST_PAIRS = 30

_WRITTEN = {
    "country_capital": """France Paris England London Italy Rome Germany Berlin Spain Madrid Austria
        Vienna Portugal Lisbon Ireland Dublin Greece Athens Russia Moscow Japan Tokyo Egypt Cairo
        China Beijing Cuba Havana Turkey Ankara Poland Warsaw Hungary Budapest Norway Oslo Sweden
        Stockholm Denmark Copenhagen Finland Helsinki Belgium Brussels Iran Tehran Iraq Baghdad
        Syria Damascus Lebanon Beirut India Delhi Kenya Nairobi Canada Ottawa Peru Lima Ukraine Kiev
        Afghanistan Kabul Israel Jerusalem Korea Seoul Scotland Edinburgh Thailand Bangkok
        Philippines Manila Libya Tripoli Chile Santiago Venezuela Caracas Indonesia Jakarta""",
    "antonym": """hot cold big small old young good bad high low fast slow long short black white
        light dark left right up down open closed hard soft rich poor happy sad early late strong
        weak wet dry true false first last inside outside above below before after begin end
        day night love hate win lose buy sell push pull full empty near far deep shallow
        north south east west male female more less same different clean dirty always never""",
    "plural": """book books cat cats dog dogs house houses tree trees car cars day days year years
        hand hands eye eyes word words name names friend friends school schools student students
        teacher teachers child children man men woman women foot feet city cities country
        countries story stories church churches box boxes bird birds river rivers flower flowers
        table tables door doors window windows road roads king kings letter letters game games
        idea ideas problem problems question questions""",
    "past_tense": """go went come came see saw take took give gave make made know knew think thought
        say said tell told find found get got run ran write wrote speak spoke eat ate drink drank
        fall fell feel felt keep kept leave left lose lost meet met send sent sing sang sit sat
        sleep slept stand stood swim swam teach taught win won begin began break broke bring
        brought build built buy bought catch caught choose chose draw drew drive drove fly flew
        walk walked play played ask asked look looked work worked""",
}


def relations(model: Model) -> tuple[dict[str, list[tuple[int, int]]], dict[str, str]]:
    """Return the token pairs of every relation that suits a tokenizer, and why others do not.

    A pair counts where both words, a space before them, are one known token each.
    """
    if model.tokenizer is None:
        raise NotApplicable("model: relations are pairs of words; load the model with a tokenizer")
    split = {name: text.split() for name, text in _WRITTEN.items()}
    words = {
        name: list(zip(listed[::2], listed[1::2], strict=True)) for name, listed in split.items()
    }
    common = sorted({word for pairs in words.values() for pair in pairs for word in pair})
    common += [word for kind in ("keys", "values", "things") for word in KINDS[kind]]
    small = [word for word in common if word.islower()]
    words["upper_case"] = [(word, word.capitalize()) for word in dict.fromkeys(small)]
    words["copying"] = [(word, word) for word in dict.fromkeys(common)]
    words["name_copying"] = [(word, word) for word in KINDS["names"]]
    usable, refused = {}, {}
    for name, pairs in words.items():
        tokens = [(_token(model, source), _token(model, target)) for source, target in pairs]
        token_pairs = [
            (source, target)
            for source, target in tokens
            if source is not None and target is not None
        ]
        token_pairs = list(dict.fromkeys(token_pairs))
        if len(token_pairs) < LEAST_PAIRS:
            refused[name] = f"{len(token_pairs)} of {LEAST_PAIRS} pairs of single tokens"
        else:
            usable[name] = token_pairs
    if not usable:
        raise NotApplicable(
            "model: the tokenizer holds too few words of the relations as single tokens "
            f"({'; '.join(f'{name}: {why}' for name, why in refused.items())})"
        )
    return usable, refused


def shuffled(count: int, draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw for each source the index of another one, so that none has its own (draw, source).

    >>> bool((shuffled(3, 9, np.random.default_rng(0)) == np.arange(3)).any())
    False
    """
    permutations = np.empty((draws, count), dtype=np.int64)
    for row in permutations:
        order = generator.permutation(count)
        row[order] = np.roll(order, int(generator.integers(1, count)))
    return permutations


def _token(model: Model, word: str) -> int | None:
    ids = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        return None
    return int(ids[0])
