"""Files of the bundled model beside its weights."""

from __future__ import annotations

from pathlib import Path

from headscope.probes.bundled.corpus import vocabulary

WORDS = r"\d{2}|[A-Za-z]+|[^\sA-Za-z]"


def write_tokenizer(out: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: a token a word, ``<bos>`` first.

    Words are runs of letters, pairs of digits and single signs, so ``1732`` is ``17 32``.

    Parameters
    ----------
    out
        Existing folder.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

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
