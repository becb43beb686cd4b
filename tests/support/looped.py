"""A looped transformer whose hand-set weights execute programs, one instruction a loop.

One block of GPT-2, its weights shared by all layers, as in Giannou et al., Looped Transformers as
Programmable Computers (2301.13196). The text is ``<bos>``, a memory of instructions, one a word,
and ``run``, whose row is the scratchpad: it holds a program counter and an output register. In
every loop one head fetches the instruction that the counter points to, and the MLP executes it: a
letter is written into the output register and the counter goes to the next place, ``goto5`` sends
the counter to place 5. A program halts by an instruction that points to itself. After the last loop
the model predicts what the output register holds.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers
from tokenizers_of_text import word_level
from word_prompts import Asked, word_prompt

from headscope.probes import load_model
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

ADDRESSES = 12
MEMORY = range(1, ADDRESSES - 1)
LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h"]
JUMPS = [f"goto{place}" for place in MEMORY]
WORDS = ["<bos>", "<unk>", "run", "blank", *LETTERS, *JUMPS]
LOOPS, HEADS, SIZE = 6, 3, 64
# The head that fetches; L0H0 of every loop looks everywhere alike, and head 2 at the token before.
FETCH = 1

# Fields of the residual stream, a coordinate a value; every row begins with four ones.
PLACE, NEXT, COUNTER = (slice(at, at + ADDRESSES) for at in (0, 12, 24))
TARGET = slice(36, 36 + ADDRESSES + 1)  # the last: no jump
LETTER = slice(50, 50 + len(LETTERS) + 1)  # the last: no letter
OUT = slice(60, 60 + len(LETTERS) + 1)  # the last: blank
RUN, BOS, FILL = 70, 71, slice(72, 74)
WIDTH = HEADS * SIZE
FETCHED = [at for field in (NEXT, TARGET, LETTER) for at in range(field.start, field.stop)]


class Run(NamedTuple):
    """The run of a program: the position fetched in each loop, the registers after it."""

    fetched: list[int]
    letters: list[str]


def execute(
    program: Sequence[str], loops: int = LOOPS, swapped: int | None = None,
    other: Sequence[str] = (),
) -> Run:  # fmt: skip
    """Interpret a program; in the loop `swapped`, execute what another one fetches in that loop."""
    counter, out, run = MEMORY[0], "blank", Run([], [])
    for loop in range(loops):
        place, word = counter, program[counter - MEMORY[0]]
        if loop == swapped:
            place = execute(other, loop + 1).fetched[loop]
            word = other[place - MEMORY[0]]
        out, counter = (out, int(word[4:])) if word in JUMPS else (word, place + 1)
        run.fetched.append(place)
        run.letters.append(out)
    return run


def draw_program(seed: int) -> list[str]:
    """Draw instructions: letters and jumps; the last place halts."""
    rng = random.Random(seed)
    words = [rng.choice(LETTERS) if rng.random() < 0.6 else rng.choice(JUMPS) for _ in MEMORY]
    words[-1] = JUMPS[-1]
    return words


def programs(n: int, seed: int = 0) -> tuple[Task, list[list[str]], list[list[str]]]:
    """Ask what programs leave in the output register; beside the task, clean and corrupted ones."""
    drawn = [draw_program(seed * 1000 + number) for number in range(2 * n)]
    clean, other = drawn[:n], drawn[n:]
    prompts = []
    for one, corrupted in zip(clean, other, strict=True):
        asked = Asked(len(MEMORY), (execute(one).letters[-1],))
        prompts.append(word_prompt([*one, "run"], [*corrupted, "run"], [asked]))
    task = Task("programs", tuple(prompts), "accuracy", seed, "What a program leaves.")
    return task, clean, other


@torch.no_grad()
def looped(loops: int = LOOPS) -> Model:
    """Build the machine; all its layers have the same weights."""
    config = transformers.GPT2Config(
        n_positions=ADDRESSES, n_embd=WIDTH, n_layer=loops, n_head=HEADS, n_inner=128,
        vocab_size=len(WORDS), activation_function="relu", tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config).eval()
    for weight in module.parameters():
        weight.zero_()
    _write_words(module)
    blocks = module.transformer.h
    _undo_norm(blocks[0].ln_1, ones=4)
    _undo_norm(blocks[0].ln_2, ones=7)
    _write_attention(blocks[0].attn)
    _write_mlp(blocks[0].mlp)
    for block in blocks[1:]:
        _share(blocks[0], block)
    _undo_norm(module.transformer.ln_f, ones=4)
    letters = torch.tensor([WORDS.index(word) for word in (*LETTERS, "blank")])
    module.lm_head.weight[letters, torch.arange(OUT.start, OUT.stop)] = 10.0
    tokenizer = word_level(WORDS, "<bos> $A", bos_token="<bos>", unk_token="<unk>")
    return load_model(module, tokenizer=tokenizer)


def _write_words(module: transformers.GPT2LMHeadModel) -> None:
    words, places = module.transformer.wte.weight, module.transformer.wpe.weight
    none, blank = TARGET.stop - 1, OUT.stop - 1
    for word in LETTERS:
        words[WORDS.index(word), [LETTER.start + LETTERS.index(word), none]] = 1
    for word in JUMPS:
        words[WORDS.index(word), [TARGET.start + int(word[4:]), LETTER.stop - 1]] = 1
    words[WORDS.index("run"), [RUN, COUNTER.start + MEMORY[0], blank]] = 1
    words[0, [BOS, *range(FILL.start, FILL.stop)]] = 1
    places[range(ADDRESSES), range(ADDRESSES)] = 1
    places[MEMORY, [NEXT.start + place + 1 for place in MEMORY]] = 1


def _undo_norm(norm: torch.nn.LayerNorm, ones: int) -> None:
    """Make a norm the identity on rows of so many ones, all else zero."""
    share = ones / WIDTH
    norm.weight.fill_((share * (1 - share) + norm.eps) ** 0.5)
    norm.bias.fill_(share)


def _write_attention(attention: torch.nn.Module) -> None:
    # c_attn is (input, output): rows of the residual stream, columns q | k | v by head.
    into, bias = attention.c_attn.weight, attention.c_attn.bias
    query, key, value = (part * WIDTH + FETCH * SIZE for part in range(3))
    place = torch.arange(ADDRESSES)
    into[COUNTER.start + place, query + place] = 40.0
    into[place, key + place] = 8.0
    # Rows without a counter attend to <bos>, which holds nothing to fetch.
    bias[query + ADDRESSES] = 20.0
    into[BOS, key + ADDRESSES] = 8.0
    fetched = torch.tensor(FETCHED)
    into[fetched, value + torch.arange(len(fetched))] = 1.0
    attention.c_proj.weight[FETCH * SIZE + torch.arange(len(fetched)), fetched] = 1.0
    # Head 2 attends to the token before, and writes nothing.
    query, key = 2 * SIZE, WIDTH + 2 * SIZE
    into[place[1:], query + place[:-1]] = 40.0
    into[place, key + place] = 8.0


def _write_mlp(mlp: torch.nn.Module) -> None:
    """Execute what was fetched: units that are 1 in the row of ``run`` alone."""
    into, bias, out = mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight
    none, letters = TARGET.stop - 1, range(LETTER.start, LETTER.stop - 1)
    units = iter(range(mlp.c_fc.weight.shape[1]))

    def unit(conditions: list[tuple[int, float]], least: float, writes: dict[int, float]) -> None:
        """Write where the conditions add up to more than `least`."""
        at = next(units)
        into[RUN, at], bias[at] = 8.0, -8.0 - least
        for field, weight in conditions:
            into[field, at] += weight
        for field, weight in writes.items():
            out[at, field] += weight

    for place in range(ADDRESSES):
        unit([(COUNTER.start + place, 1)], 0, {COUNTER.start + place: -1})
        # The next place where no jump was fetched, and the jump's where one was.
        unit([(NEXT.start + place, 1), (none, 1)], 1, {COUNTER.start + place: 1})
        unit([(TARGET.start + place, 1)], 0, {COUNTER.start + place: 1, TARGET.start + place: -1})
        unit([(NEXT.start + place, 1)], 0, {NEXT.start + place: -1})
    unit([(none, 1)], 0, {none: -1})
    for at in range(OUT.stop - OUT.start):
        # A letter replaces what the output register holds.
        loaded = [(field, 1.0) for field in letters]
        unit([(OUT.start + at, 1), *loaded], 1, {OUT.start + at: -1})
        writes = {LETTER.start + at: -1.0}
        if LETTER.start + at in letters:
            writes[OUT.start + at] = 1.0
        unit([(LETTER.start + at, 1)], 0, writes)


def _share(first: torch.nn.Module, other: torch.nn.Module) -> None:
    """Give a block the weights of the first, the same tensors."""
    for name, inner in first.named_modules():
        for part, weight in inner.named_parameters(recurse=False):
            setattr(other.get_submodule(name), part, weight)
