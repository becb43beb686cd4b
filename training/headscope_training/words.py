"""The words that the two Llamas of generated text are made of: vocabulary, tokenizer, shape."""

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from headscope.probes.prompts.tasks._vocabulary import Vocabulary

SPECIAL = ("<bos>", "<pad>", "<unk>")
# Runs of letters, pairs of digits and single signs, so ``1732`` is ``17 32``.
WORDS = r"\d{2}|[A-Za-z]+|[^\sA-Za-z]"


@cache
def vocabulary() -> dict[str, int]:
    """Token ids, special tokens first."""
    return {word: number for number, word in enumerate((*SPECIAL, *Vocabulary().take()))}


def write_word_tokenizer(out: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: a token a word, ``<bos>`` first."""
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(out)


def llama_config(**sizes: Any) -> LlamaConfig:
    """A Llama of these words with heads of 32."""
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        head_dim=32,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
        dtype="float32",
        **sizes,
    )
