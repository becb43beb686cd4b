"""Models with hand-set weights whose heads write known words: as they are, turned, by pairs."""

import constructed
import torch
import transformers
from constructed import HEADS, OUT, PLACE, POSITIONS, SIZE, TOKEN, WORDS
from tokenizers_of_text import word_level

from headscope.analyses._measurements import relation_words
from headscope.probes import load_model
from headscope.probes.models.model import Model

# What follows what: word after word in a ring.
NEXT = torch.arange(len(WORDS)).roll(-1)
# Which head of `turning` does what.
WRITER, TURNER = (0, 0), (1, 0)
MIDDLE = 128

PAIRS = relation_words._WRITTEN["country_capital"].split()
COUNTRIES, CAPITALS = PAIRS[::2], PAIRS[1::2]
# Which head of `relating` does what.
KNOWS, SOME, WRONG, SILENT = (0, 0), (0, 1), (0, 2), (0, 3)
RAISED = 8


@torch.no_grad()
def turning() -> Model:
    """Two layers of GPT-2 that predict the next word of the ring `NEXT`.

    L0H0 attends to its own token and writes it where the unembedding reads it as the word itself;
    L1H0 turns this into the word that follows, and writes it larger. All other heads write nothing.
    """
    module = constructed.silent_gpt2(
        n_positions=POSITIONS, n_embd=HEADS * SIZE, n_layer=2, n_head=HEADS
    )
    words, positions, width = torch.arange(len(WORDS)), torch.arange(POSITIONS), HEADS * SIZE
    module.transformer.wte.weight[words, TOKEN + words] = 1.0
    module.transformer.wpe.weight[positions, PLACE + positions] = 1.0
    module.lm_head.weight[words, MIDDLE + words] = 1.0
    module.lm_head.weight[words, OUT + words] = 2.0
    for block in module.transformer.h:
        block.attn.c_attn.weight[PLACE + positions, positions] = 1.5
        block.attn.c_attn.weight[PLACE + positions, width + positions] = 1.0
    first, second = (block.attn for block in module.transformer.h)
    first.c_attn.weight[TOKEN + words, 2 * width + words] = 1.0
    first.c_proj.weight[words, MIDDLE + words] = 1 / 16
    second.c_attn.weight[MIDDLE + words, 2 * width + words] = 1.0
    second.c_proj.weight[words, OUT + NEXT[words]] = 2 / 13
    return load_model(module, tokenizer=constructed.tokenizer())


def rings(count: int = 20, length: int = 12) -> list[str]:
    """Texts that go along the ring, each from a word of its own."""
    content = WORDS[2:]
    return [" ".join(content[start : start + length]) for start in range(count)]


@torch.no_grad()
def relating() -> Model:
    """One layer of Llama whose first head knows the capital of every country.

    L0H1 raises the capitals of `RAISED` countries whatever it reads, L0H2 gives every country the
    capital of the next one, L0H3 writes nothing.
    """
    words = ["<bos>", "<unk>", *COUNTRIES, *CAPITALS]
    count, size = len(COUNTRIES), 64
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=4 * size, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=4, head_dim=size, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    for name, weight in module.named_parameters():
        if "norm" not in name:
            weight.zero_()
    every, countries = torch.arange(len(words)), torch.arange(count)
    capitals = 2 + count + countries
    module.model.embed_tokens.weight[every, every] = 1.0
    out = 2 * size  # where the unembedding reads words
    module.lm_head.weight[every, out + every] = 1.0
    attention = module.model.layers[0].self_attn
    for _, head in (KNOWS, WRONG):
        attention.v_proj.weight[head * size + countries, 2 + countries] = 1.0
    attention.v_proj.weight[SOME[1] * size, 2 + countries] = 1.0
    outward = attention.o_proj.weight
    outward[out + capitals, KNOWS[1] * size + countries] = 1.0
    outward[out + capitals.roll(-1), WRONG[1] * size + countries] = 1.0
    outward[out + capitals[:RAISED], SOME[1] * size] = 1.0
    tokenizer = word_level(words, "<bos> $A", bos_token="<bos>", unk_token="<unk>")
    return load_model(module, tokenizer=tokenizer)
