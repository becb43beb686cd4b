"""Texts to tokens, held against tokenizers built here and their own encoding of the text."""

from typing import Any

import pytest
from refusals import check_message
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_of_text import KINDS_OF_TOKENIZER
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from word_prompts import in_words

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes import capture, load_model
from headscope.probes.bundled import folder
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Prompt, Question, Task
from headscope.probes.prompts.tokens import EncodedTask, encode
from headscope.probes.storage import run_folder


@pytest.fixture(scope="module")
def word_level() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder("headscope/bundled"))


@pytest.fixture(scope="module", params=list(KINDS_OF_TOKENIZER))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS_OF_TOKENIZER[request.param]()


@pytest.mark.parametrize("name", tasks.names())
def test_a_word_is_a_token_of_the_bundled_tokenizer(name, word_level):
    task = tasks.make(name, word_level, n=5)
    assert task.register == "plain"
    encoded = encode(task, word_level)
    table = word_level.get_vocab()
    for number, prompt in enumerate(map(in_words, task.prompts)):
        assert list(encoded.ids[number]) == [0, *(table[word] for word in prompt.words)]
        assert list(encoded.corrupted_ids[number]) == [0, *(table[w] for w in prompt.corrupted)]
        for asked, result in zip(prompt.questions, encoded.questions[number], strict=True):
            assert result.at == asked.at + 1
            assert result.evidence == tuple(place + 1 for place in asked.evidence)
            assert result.answer_ids == tuple(table[word] for word in asked.answers)
            assert result.wrong_ids == tuple(table[word] for word in asked.wrong)
        for role, places in prompt.roles.items():
            assert encoded.roles[number][role] == tuple(place + 1 for place in places)


def check(task: Task, encoded: EncodedTask, tokenizer: Any) -> None:
    """Hold an encoded task of texts against the tokenizer's own ids and text."""
    for number, prompt in enumerate(task.prompts):
        ids = list(encoded.ids[number])
        assert ids == tokenizer(prompt.clean)["input_ids"]
        assert list(encoded.corrupted_ids[number]) == tokenizer(prompt.corrupted)["input_ids"]
        for role, spans in prompt.roles.items():
            for span, places in zip(spans, encoded.spans[number][role], strict=True):
                part = str(prompt.part(span)).replace(" ", "").lower()
                text = tokenizer.decode([ids[place] for place in places])
                assert part in text.replace(" ", "").lower()
        for asked, result in zip(prompt.questions, encoded.questions[number], strict=True):
            # What the model has read when it answers is the text up to the question.
            read = prompt.clean[: asked.at]
            assert ids[: result.at + 1] == tokenizer(read)["input_ids"][: result.at + 1]
            whole = [tokenizer(read + answer)["input_ids"] for answer in asked.answers]
            assert set(result.answer_ids) <= {row[result.at + 1] for row in whole}
            assert not set(result.answer_ids) & set(result.wrong_ids)


@pytest.mark.parametrize("name", [name for name in tasks.names() if name != "induction"])
def test_every_task_runs_on_every_kind_of_tokenizer(name, tokenizer):
    task = tasks.make(name, tokenizer, n=3)
    assert task.register == "natural"
    check(task, encode(task, tokenizer), tokenizer)


@pytest.mark.parametrize("name", ["ioi", "recall", "needle"])
def test_the_plain_register_runs_on_every_kind_of_tokenizer(name, tokenizer):
    options = {"length": 40} if name == "needle" else {"pairs": 2} if name == "recall" else {}
    task = tasks.make(name, tokenizer, n=3, register="plain", **options)
    check(task, encode(task, tokenizer), tokenizer)


def test_random_tokens_are_ordinary_ones(tokenizer):
    for options in ({"length": 6}, {"length": 700}):
        task = tasks.make("induction", tokenizer, n=2, **options)
        length = options["length"]
        encoded = encode(task, tokenizer)
        before = encoded.questions[0][0].at - length
        first = encoded.ids[0][before : before + length]
        second = encoded.ids[0][before + length : before + 2 * length]
        assert first[1:] == second[1:]
        assert len(set(second)) == length
        for token in second:
            name = tokenizer.convert_ids_to_tokens(token)
            assert token not in tokenizer.all_special_ids
            assert not name.startswith(("<0x", "<unused"))
            assert name.strip("Ġ▁")
        assert encoded.questions[0][0].answer_ids == (second[1],)
        assert list(encoded.ids[0][:before]) == tokenizer("")["input_ids"][:before]


def test_random_tokens_need_no_tokenizer():
    encoded = encode(tasks.make("induction", n=2, length=5, vocab_size=50), None)
    assert encoded.ids[0] == (*encoded.ids[0][:5], *encoded.ids[0][:5])
    assert max(encoded.ids[0]) < 50
    assert encoded.questions[0][0].at == 5
    assert encoded.questions[0][0].evidence == (1,)
    with pytest.raises(HeadscopeError, match=r"^tokenizer: a task needs one"):
        encode(tasks.make("ioi", n=1, vocab_size=50), None)


def test_years_after_the_start_are_right_however_numbers_are_cut(tokenizer):
    task = tasks.make("greater_than", tokenizer, n=6)
    encoded = encode(task, tokenizer)
    for number, prompt in enumerate(task.prompts):
        assert isinstance(prompt.clean, str)
        century, start = (str(prompt.part(prompt.roles[role][0])) for role in ("century", "start"))
        (asked,), (result,) = prompt.questions, encoded.questions[number]
        right, wrong = set(), set()
        for year in range(100):
            shown = prompt.clean[: asked.at].rpartition("year")[2]
            whole = f" {century}{year:02d}"
            if whole.startswith(shown):
                ids = tokenizer(prompt.clean[: asked.at] + whole[len(shown) :])["input_ids"]
                (right if year > int(start) else wrong).add(ids[result.at + 1])
        assert set(result.answer_ids) == right - wrong
        assert set(result.wrong_ids) == wrong - right


def test_what_a_tokenizer_does_not_allow_is_drawn_again_and_counted():
    tokenizer = KINDS_OF_TOKENIZER["byte level"](700)
    task = tasks.make("recall", tokenizer, n=6, pairs=3)
    assert task.redrawn > 0
    encoded = encode(task, tokenizer)
    assert encoded.redrawn == task.redrawn
    assert [len(ids) for ids in encoded.ids] == [len(ids) for ids in encoded.corrupted_ids]


def test_a_capture_states_how_its_task_is_worded_and_how_often_it_was_drawn_again(tmp_path):
    tokenizer = KINDS_OF_TOKENIZER["byte level"](700)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = load_model(LlamaForCausalLM(config), tokenizer=tokenizer)
    task = tasks.make("recall", tokenizer, n=6, pairs=3)
    result = capture(model, task, stats=("lse",))
    assert (result.attrs["register"], result.attrs["redrawn"]) == ("natural", task.redrawn)
    run = run_folder.create(tmp_path / "run", result)
    assert (run.manifest["register"], run.manifest["redrawn"]) == ("natural", task.redrawn)
    own = capture(model, ["a text"], stats=("lse",))
    assert (own.attrs["register"], own.attrs["redrawn"]) == ("", 0)


def test_tasks_made_inside_have_its_wording_and_those_after_it_their_own():
    tokenizer = KINDS_OF_TOKENIZER["byte level"](700)
    with tasks.wording("plain"):
        assert tasks.make("ioi", tokenizer, n=1).register == "plain"
        assert tasks.make("ioi", tokenizer, n=1, register="natural").register == "natural"
    assert tasks.make("ioi", tokenizer, n=1).register == "natural"
    with pytest.raises(InvalidInput, match=r"^register: .*plain or natural"), tasks.wording("odd"):
        pass


def single_task(clean: str, corrupted: str, answers: str, wrong: str) -> Task:
    ask = Question(len(clean), (answers,), (wrong,))
    return Task("mine", (Prompt(clean, corrupted, (ask,)),), "accuracy", 0, "")


def test_continuations_with_one_beginning_are_refused(tokenizer):
    with pytest.raises(HeadscopeError, match=r"^prompt 1 of mine: answers: ' 1' and ' 1 2' begin"):
        encode(single_task("the dog", "the dog", " 1", " 1 2"), tokenizer)
    with pytest.raises(HeadscopeError, match="answers: a continuation changes the tokens"):
        encode(single_task("the gar", "the gar", "den", "age"), tokenizer)


def test_twins_of_other_lengths_are_refused_where_they_are_asked_for(tokenizer):
    encoded = encode(single_task("the red dog", "the dog", " and", " of"), tokenizer)
    assert list(encoded.ids[0]) == tokenizer("the red dog")["input_ids"]
    check_message(r"^prompt 1 of mine: corrupted: ", encoded.corrupted)


def test_words_that_a_tokenizer_does_not_know_are_refused_by_name(word_level):
    with pytest.raises(HeadscopeError, match=r"words: this tokenizer does not know 'zebra'"):
        encode(single_task("the zebra", "the Mary", " and", " to"), word_level)
    with pytest.raises(HeadscopeError, match=r"words: this tokenizer does not know 'zebra'"):
        encode(single_task("the Mary", "the Mary", " zebra", " to"), word_level)


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        bos_token_id = unk_token_id = None
        is_fast = False

    with pytest.raises(HeadscopeError, match=r"^tokenizer: Slow does not say where .* fast"):
        encode(single_task("the dog", "the cat", " and", " to"), Slow())  # type: ignore[arg-type]


def test_task_is_refused_when_too_few_words_remain():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "the": 2, "Mary": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    small = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    check_message(r"^words: 1 of kind names are known .* needs 3", tasks.make, "ioi", small)


def test_an_unknown_register_is_refused():
    check_message(r"^register: 'loud' is unknown", tasks.make, "ioi", register="loud")
