"""Tokenizers of the kinds that models have, trained on a few lines, and tokenizers of words."""

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from headscope.probes.prompts.tasks._natural_words import NATURAL, PROSE
from headscope.probes.prompts.tasks._words import KINDS

BERT_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}  # fmt: skip
# Some words of every kind are left out, so that they become several tokens.
LINES = [
    *(" ".join(("the", word, "and", word)) for kind in KINDS.values() for word in kind[::2]),
    *(" ".join(words[::2]) for kind, words in NATURAL.items() if kind != "arguments"),
    *PROSE,
    # Every letter and digit inside a word and at its start.
    *(f"{sign}{sign}" for sign in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
]


def byte_level(size: int = 2500) -> PreTrainedTokenizerFast:
    """A tokenizer as of GPT-2: bytes, spaces before words, nothing around a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def sentence_piece(size: int = 2500) -> PreTrainedTokenizerFast:
    """A tokenizer as of Gemma: ▁ for spaces, single digits, <bos> before a text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    words = pre_tokenizers.Split("▁", "merged_with_next")
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, digits])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<bos>", "<unk>", "<unused0>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 259, show_progress=False, special_tokens=special,
        initial_alphabet=list("0123456789()[]{}.,?!:;▁"),
    )  # fmt: skip
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", unk_token="<unk>")


def word_piece(size: int = 2500) -> PreTrainedTokenizerFast:
    """A tokenizer as of BERT: lower case, ## inside words, [CLS] and [SEP] around a text."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, show_progress=False,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=list("0123456789()[]{}.,?!:;\""),
    )  # fmt: skip
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **BERT_TOKENS)


def word_level(words: Sequence[str], around: str = "$A", **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, with the special tokens that stand around a text."""
    numbers = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbers, unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if around != "$A":
        named = [(token, numbers[token]) for token in around.split() if token != "$A"]
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


KINDS_OF_TOKENIZER = {
    "byte level": byte_level, "sentence piece": sentence_piece, "word piece": word_piece,
}  # fmt: skip
