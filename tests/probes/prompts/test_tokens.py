"""Words to tokens, held against tokenizers built here and their own encoding of the text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headscope.kernels.errors import HeadscopeError
from headscope.probes.bundled import folder
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Prompt, Question, Task
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.tokens import encode, is_single, join


@pytest.fixture(scope="module")
def word_level() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder("headscope/bundled"))


@pytest.fixture(scope="module")
def byte_pairs() -> PreTrainedTokenizerFast:
    """A GPT-2 kind of tokenizer without BOS that knows most, not all, of the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rare = {"thunder", "Sophie"}
    known = [word for kind in KINDS.values() for word in kind if word not in rare]
    text = [f"{word} {word} {word}" for word in known]
    trainer = trainers.BpeTrainer(vocab_size=4000, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("name", tasks.names())
def test_bos_shifts_every_position_by_one(name: str, word_level: PreTrainedTokenizerFast) -> None:
    task = tasks.make(name, word_level, n=5)
    encoded = encode(task, word_level)
    assert encoded.offset == 1
    table = word_level.get_vocab()
    for number, prompt in enumerate(task.prompts):
        assert list(encoded.ids[number]) == [0, *(table[word] for word in prompt.words)]
        assert list(encoded.corrupted_ids[number]) == [0, *(table[w] for w in prompt.corrupted)]
        for asked, found in zip(prompt.questions, encoded.questions[number], strict=True):
            assert found.at == asked.at + 1
            assert found.evidence == tuple(place + 1 for place in asked.evidence)
            assert found.answer_ids == tuple(table[word] for word in asked.answers)
            assert found.wrong_ids == tuple(table[word] for word in asked.wrong)
        for role, places in prompt.roles.items():
            assert encoded.roles[number][role] == tuple(place + 1 for place in places)


@pytest.mark.parametrize("name", ["ioi", "recall", "needle", "induction", "brackets", "story"])
def test_ids_are_those_of_the_joined_text(name: str, byte_pairs: PreTrainedTokenizerFast) -> None:
    task = tasks.make(name, byte_pairs, n=8)
    encoded = encode(task, byte_pairs)
    assert encoded.offset == 0
    for number, prompt in enumerate(task.prompts):
        own = byte_pairs.encode(join(prompt.words), add_special_tokens=False)
        assert list(encoded.ids[number]) == own
        assert encoded.questions[number][0].at == prompt.questions[0].at


def test_years_are_one_number_in_the_text(word_level: PreTrainedTokenizerFast) -> None:
    task = tasks.make("greater_than", word_level, n=4, low=32, high=32)
    text = join(task.prompts[0].words)
    assert "32 to the year" in text
    assert " 32 " not in text
    assert list(encode(task, word_level).ids[0]) == word_level.encode(text)


def test_answers_are_spelled_as_they_would_continue_the_text(
    byte_pairs: PreTrainedTokenizerFast,
) -> None:
    task = tasks.make("ioi", byte_pairs, n=3)
    encoded = encode(task, byte_pairs)
    for number, prompt in enumerate(task.prompts):
        text = join((*prompt.words, prompt.questions[0].answers[0]))
        assert byte_pairs.encode(text)[-1] == encoded.questions[number][0].answer_ids[0]


def test_words_that_are_not_one_token_are_left_out(byte_pairs: PreTrainedTokenizerFast) -> None:
    assert not is_single(byte_pairs, "Sophie")
    assert is_single(byte_pairs, "Mary")
    said = {
        word
        for seed in range(4)
        for prompt in tasks.make("induction", byte_pairs, n=20, seed=seed).prompts
        for word in prompt.words
    }
    assert not said & {"thunder", "Sophie"}
    assert len(said) > 200


def test_word_that_is_not_one_token_is_refused_by_name(
    byte_pairs: PreTrainedTokenizerFast, word_level: PreTrainedTokenizerFast
) -> None:
    prompt = Prompt(("the", "Sophie"), ("the", "Mary"), (Question(1, ("and",), ("to",)),))
    with pytest.raises(HeadscopeError, match=r"^words: 'Sophie' is not one token"):
        encode(Task("mine", (prompt,), "accuracy", 0, ""), byte_pairs)
    prompt = Prompt(("the", "Mary"), ("the", "zebra"), (Question(1, ("and",), ("to",)),))
    with pytest.raises(HeadscopeError, match=r"^words: this tokenizer does not know 'zebra'"):
        encode(Task("mine", (prompt,), "accuracy", 0, ""), word_level)


def test_task_is_refused_when_too_few_words_remain(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "the": 2, "Mary": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    small = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(HeadscopeError, match=r"^words: 1 of kind names are one token .* needs 3"):
        tasks.make("ioi", small)


def test_join_glues_signs_and_years() -> None:
    words = ("In", "17", "32", ",", "the", "cat", ".", "(", "[", "17")
    assert join(words) == "In 1732, the cat. ( [ 17"
