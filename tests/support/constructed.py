"""Models with hand-set weights, whose circuit is known exactly.

They are ordinary Hugging Face models with a word-level tokenizer, so everything goes through
`load_model` and `capture` as for any model. Attention is saturated: the intended key holds more
than 0.999 of the weight.
"""

import random

import torch
import transformers
from tokenizers_of_text import BERT_TOKENS, word_level
from transformers import PreTrainedTokenizerFast
from word_prompts import Asked, word_prompt

from headscope.probes import load_model
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._words import KINDS

KEYS = [
    "apple", "banana", "carrot", "lemon", "cherry", "grape", "onion", "potato", "tomato", "pepper",
]  # fmt: skip
VALUES = [
    "north", "south", "east", "west", "summer", "winter", "spring", "autumn", "morning", "evening",
]  # fmt: skip
NAMES = ["Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma", "Mark", "Lucy"]
WORDS = ["<bos>", "<unk>", "note", "ask", ".", *KEYS, *VALUES, *NAMES]

# Enough of every kind for the tasks that analyses make.
ENCODER_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENCODER_WORDS += [word for kind, words in KINDS.items() if kind != "numbers" for word in words]

HEADS = 4
SIZE = 128
POSITIONS = 80
# Where the residual stream of the GPT-2 holds what: one coordinate a word or position.
TOKEN, PLACE, BEFORE, OUT = 0, 48, 128, 176

# Which head of `circuit` does what.
PREVIOUS, SINK, UNIFORM, DUPLICATE = (0, 0), (0, 1), (0, 2), (0, 3)
INDUCTION = (1, 0)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, `<bos>` first."""
    return word_level(WORDS, "<bos> $A", bos_token="<bos>", unk_token="<unk>")


@torch.no_grad()
def silent_gpt2(**shape: int) -> transformers.GPT2LMHeadModel:
    """A GPT-2 for `tokenizer` whose weights are zero, those of its norms apart."""
    config = transformers.GPT2Config(
        **shape, vocab_size=len(WORDS), n_inner=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config).eval()
    for name, weight in module.named_parameters():
        if "ln_" not in name:
            weight.zero_()
    return module


@torch.no_grad()
def circuit() -> Model:
    """Two layers of GPT-2 with five heads that do something, and three that are uniform.

    L0H0 attends to the token before and writes it down; L0H1 attends to the first token; L0H2
    attends everywhere alike; L0H3 attends to earlier copies of its token, shared equally; L1H0
    attends to the token after an earlier copy (to the first token where there is none) and copies
    it into the logits. Only L0H0 and L1H0 write anything.
    """
    module = silent_gpt2(n_positions=POSITIONS, n_embd=HEADS * SIZE, n_layer=2, n_head=HEADS)
    words, positions = torch.arange(len(WORDS)), torch.arange(POSITIONS)
    module.transformer.wte.weight[words, TOKEN + words] = 1.0
    module.transformer.wpe.weight[positions, PLACE + positions] = 1.0
    module.lm_head.weight[words, OUT + words] = 2.0
    first, second = (block.attn for block in module.transformer.h)
    width = HEADS * SIZE

    # c_attn is (input, output): rows of the residual stream, columns q | k | v by head.
    def query(head: int) -> int:
        return head * SIZE

    def key(head: int) -> int:
        return width + head * SIZE

    def value(head: int) -> int:
        return 2 * width + head * SIZE

    into = first.c_attn.weight
    into[PLACE + positions[1:], query(0) + positions[:-1]] = 1.5
    into[PLACE + positions, key(0) + positions] = 1.0
    into[TOKEN + words, value(0) + words] = 1.0
    first.c_proj.weight[words, BEFORE + words] = 1 / 16
    first.c_attn.bias[query(1)] = 16.0
    into[PLACE, key(1)] = 1.5
    # Scores: its own token matches, but standing at the same place costs more than it gains.
    into[TOKEN + words, query(3) + words] = 1.5
    into[TOKEN + words, key(3) + words] = 1.0
    into[PLACE + positions[: SIZE - len(WORDS)], query(3) + len(WORDS) + positions] = 3.0
    into[PLACE + positions[: SIZE - len(WORDS)], key(3) + len(WORDS) + positions] = -1.0

    into = second.c_attn.weight
    into[TOKEN + words, query(0) + words] = 3.0
    into[BEFORE + words, key(0) + words] = 1.0
    second.c_attn.bias[query(0) + SIZE - 1] = 16.0
    into[PLACE, key(0) + SIZE - 1] = 1.0
    into[TOKEN + words, value(0) + words] = 1.0
    second.c_proj.weight[words, OUT + words] = 1 / 13
    return load_model(module, tokenizer=tokenizer())


@torch.no_grad()
def rotary_sink() -> Model:
    """One layer of Llama (RoPE, GQA): L0H0 sinks into `<bos>`, L0H1 is uniform.

    The sink is in the content of `<bos>`, read through a pair of dimensions that RoPE hardly turns.
    """
    size, width = 16, 48
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=size, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12}, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-6,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    for name, weight in module.named_parameters():
        if "norm" not in name:
            weight.zero_()
    words = torch.arange(len(WORDS))
    module.model.embed_tokens.weight[words, words] = 1.0
    attention = module.model.layers[0].self_attn
    slow = size // 2 - 1
    attention.q_proj.weight[slow, words] = 1.0
    attention.k_proj.weight[slow, 0] = 2.0
    attention.v_proj.weight[words[:size], words[:size]] = 1.0
    attention.o_proj.weight[words[:size], words[:size]] = 0.1
    module.lm_head.weight[words, words] = 1.0
    return load_model(module, tokenizer=tokenizer())


def random_llama(seed: int = 0, layers: int = 2, positions: int = 256) -> Model:
    """A Llama as it comes out of its initialiser."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return load_model(transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer())


def hybrid(vocabulary: int) -> transformers.Lfm2ForCausalLM:
    """Four layers with random weights, of which 0 and 2 have no attention map."""
    torch.manual_seed(3)
    config = transformers.Lfm2Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, block_ff_dim=48,
        layer_types=["conv", "full_attention", "conv", "full_attention"], block_multiple_of=8,
    )  # fmt: skip
    return transformers.Lfm2ForCausalLM(config).eval()


def repeated(n: int = 4, length: int = 12, seed: int = 0) -> Task:
    """Random words said twice; every word of the second half but the last is asked."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(n):
        half = rng.sample([*KEYS, *VALUES, *NAMES], length)
        other = rng.sample([*KEYS, *VALUES, *NAMES], length)
        asked = [
            Asked(length + at, (half[at + 1],), (half[at - 1],), (at + 1,))
            for at in range(length - 1)
        ]
        prompts.append(word_prompt((*half, *half), (*other, *half), asked))
    return Task("repeated", tuple(prompts), "accuracy", seed, "Random words said twice.")


def needle(values: tuple[str, ...], n: int = 3, seed: int = 0) -> Task:
    """Haystacks of names with one key and its values, asked for word by word."""
    rng = random.Random(seed)
    prompts = []
    for number in range(n):
        hay = rng.sample(NAMES, len(NAMES))
        key = KEYS[number % len(KEYS)]
        words = (*hay[:4], key, *values, *hay[4:], key, *values[:-1])
        start = len(words) - len(values)
        asked = [Asked(start + at, (value,), (), (5 + at,)) for at, value in enumerate(values)]
        corrupted = tuple("west" if word in values else word for word in words)
        prompts.append(word_prompt(words, corrupted, asked))
    return Task("needle", tuple(prompts), "accuracy", seed, "One fact in a haystack.")


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, `[CLS]` before and `[SEP]` after every text."""
    return word_level(ENCODER_WORDS, "[CLS] $A [SEP]", **BERT_TOKENS)


@torch.no_grad()
def encoder() -> transformers.BertForMaskedLM:
    """Two layers of BERT: one head each for the next token, `[SEP]`, and the token before.

    L0H0 attends to the token after, L0H1 to `[SEP]`, L0H3 to the token before; L0H2 and layer 1 are
    uniform. Only L0H2 writes, a little, into a place that nothing reads.
    """
    count, size, place, out = len(ENCODER_WORDS), 256, 512, 640
    config = transformers.BertConfig(
        vocab_size=count, hidden_size=HEADS * size, num_hidden_layers=2,
        num_attention_heads=HEADS, intermediate_size=4, max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    module = transformers.BertForMaskedLM(config).eval()
    for name, weight in module.named_parameters():
        if "LayerNorm" not in name:
            weight.zero_()
    words, positions = torch.arange(count), torch.arange(POSITIONS)
    embeddings = module.bert.embeddings
    embeddings.word_embeddings.weight[words, words] = 1.0
    embeddings.position_embeddings.weight[positions, place + positions] = 1.0
    first = module.bert.encoder.layer[0].attention.self
    # Rows of the weights are the heads, columns the residual stream.
    for head, step in ((0, 1), (3, -1)):
        inside = positions[(positions + step >= 0) & (positions + step < POSITIONS)]
        first.query.weight[head * size + inside + step, place + inside] = 1.5
        first.key.weight[head * size + positions, place + positions] = 1.0
    first.query.bias[size] = 16.0
    first.key.weight[size, ENCODER_WORDS.index("[SEP]")] = 1.5
    some = words[:size]
    first.value.weight[2 * size + some, some] = 1.0
    module.bert.encoder.layer[0].attention.output.dense.weight[out + some, 2 * size + some] = 0.01
    return module


@torch.no_grad()
def vision() -> transformers.ViTModel:
    """One layer of ViT on 4 × 4 patches: a head for the next token, one for `[CLS]`.

    L0H0 attends to the patch after (from `[CLS]` to r0c0), L0H1 to `[CLS]`; L0H2 and L0H3 are
    uniform, and L0H2 writes what the patches show.
    """
    size, positions = 32, torch.arange(17)
    config = transformers.ViTConfig(
        hidden_size=HEADS * size, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=HEADS, image_size=16, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    module = transformers.ViTModel(config, add_pooling_layer=False).eval()
    for name, weight in module.named_parameters():
        if "layernorm" not in name and "patch_embeddings" not in name:
            weight.zero_()
    # Patches write where no place is, and a little, so that places decide who looks where.
    module.embeddings.patch_embeddings.projection.weight.mul_(0.02)
    module.embeddings.patch_embeddings.projection.weight[:32] = 0.0
    module.embeddings.position_embeddings[0, positions, positions] = 1.0
    attention = module.layers[0].attention
    attention.q_proj.weight[positions[1:], positions[:-1]] = 1.5
    attention.k_proj.weight[positions, positions] = 1.0
    attention.q_proj.bias[size] = 10.0
    attention.k_proj.weight[size, 0] = 1.5
    attention.v_proj.weight[2 * size : 3 * size, 32:64] = torch.eye(size)
    attention.o_proj.weight[64:96, 2 * size : 3 * size] = torch.eye(size)
    return module
