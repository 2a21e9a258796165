"""The embedded sample set: the right sizes, the same everywhere, honest between pool and test."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import product

import pytest

from exemplar.data.checks import check_record
from exemplar.records import Example
from exemplar.retrieval.ranking import normalise
from exemplar.tasks import sample
from exemplar.tasks.sample_text import Material, material

SPECS = sample.specs()
CLASSIFICATION = [name for name, spec in SPECS.items() if spec.kind == "classification"]


@cache
def splits(seed: int = 1) -> dict[str, list[Example]]:
    return sample.generate(seed)


def of(split: str, task: str, seed: int = 1) -> list[Example]:
    return [example for example in splits(seed)[split] if example.task == task]


def words(text: str) -> int:
    return len(text.split())


def patterns(task: str) -> dict[str, list[re.Pattern[str]]]:
    """For each kind's answer, its phrasings as patterns: any alternative, anything in a slot."""
    found: dict[str, list[re.Pattern[str]]] = {}
    for key, kind in material(task).kinds.items():
        for idea in kind.ideas:
            parts = re.split(r"(\[[^\]]+\]|\{\w+\})", idea)
            pieces = [
                "(?:" + "|".join(map(re.escape, part[1:-1].split("|"))) + ")"
                if part.startswith("[")
                else ".+"
                if part.startswith("{")
                else re.escape(part)
                for part in parts
            ]
            found.setdefault(key, []).append(re.compile("".join(pieces), re.IGNORECASE))
    return found


def test_the_set_has_its_sizes_and_every_task_every_split() -> None:
    """A task without test examples would drop out of every average unseen."""
    assert len(SPECS) >= 8
    assert len(splits()["pool"]) >= 2000
    assert len(splits()["test"]) >= 320
    for name, spec in SPECS.items():
        assert len(of("pool", name)) == sample.POOL_PER_TASK
        assert len(of("test", name)) == sample.TEST_PER_TASK
        assert len(of("train", name)) == (0 if spec.held_out else sample.TRAIN_PER_TASK)
    assert {spec.kind for spec in SPECS.values()} == {
        "classification",
        "multiple_choice",
        "generation",
    }
    assert any(spec.held_out for spec in SPECS.values())


def test_every_example_fits_its_schema_and_has_an_id_of_its_own() -> None:
    """Two examples under one id would swap their scores when files are joined by id."""
    for examples in splits().values():
        for example in examples:
            check_record(example)
        ids = [example.example_id for example in examples]
        assert len(ids) == len(set(ids))
    assert not {e.example_id for e in splits()["pool"]} & {e.example_id for e in splits()["test"]}


def test_the_same_seed_gives_the_same_set_and_another_seed_another() -> None:
    """DVC compares files by their hash: a set that wobbled would make every stage run again."""
    assert sample.generate(1) == splits()
    texts = {seed: {example.text for example in splits(seed)["test"]} for seed in (1, 2)}
    assert len(texts[1] & texts[2]) < 0.2 * len(texts[1])


def test_training_queries_are_examples_of_the_pool() -> None:
    """Two rounds later, a query's own example is excluded by its id: the ids must be the same."""
    assert set(splits()["train"]) <= set(splits()["pool"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_query_stands_twice_and_no_test_query_in_the_pool(seed: int) -> None:
    """A copy in the pool would hand the LM the answer, and any retriever would look good."""
    for task in SPECS:
        pool = [normalise(example.query) for example in of("pool", task, seed)]
        test = [normalise(example.query) for example in of("test", task, seed)]
        assert len(set(pool)) == len(pool)
        assert len(set(test)) == len(test)
        assert not set(pool) & set(test)


def test_near_duplicates_of_test_queries_are_rare_in_the_pool() -> None:
    """A near copy is as good as a copy; word sets that agree to nine tenths are called near."""

    def near(query: str, pool: list[set[str]]) -> bool:
        bag = set(normalise(query).split())
        return any(len(bag & other) >= 0.9 * len(bag | other) for other in pool)

    for task in SPECS:
        pool = [set(normalise(example.query).split()) for example in of("pool", task)]
        found = [example.query for example in of("test", task) if near(example.query, pool)]
        assert len(found) <= 2, found


@pytest.mark.parametrize("task", SPECS)
@pytest.mark.parametrize("split", ["pool", "train", "test"])
def test_kinds_are_balanced(task: str, split: str) -> None:
    """Where one label prevails, always answering it would beat honest demonstrations."""
    examples = of(split, task)
    if SPECS[task].kind == "generation" or not examples:
        return
    counts = Counter(example.answer for example in examples)
    assert len(counts) == len(material(task).kinds)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_labels_are_short_and_differ_in_their_first_word(task: str) -> None:
    """Decoding is settled by the first word, and each token of a label is paid for often."""
    labels = SPECS[task].labels
    assert set(labels) == {example.answer for example in of("pool", task)}
    assert len({label.split()[0].casefold() for label in labels}) == len(labels)
    assert all(words(label) == 1 for label in labels)


@pytest.mark.parametrize("task", SPECS)
def test_texts_are_short(task: str) -> None:
    """The demo counts its tokens: the whole run has ten minutes on two cores."""
    examples = of("pool", task) + of("test", task)
    lengths = [words(example.query) for example in examples]
    assert max(lengths) <= 25
    assert sum(lengths) / len(lengths) <= 16
    assert max(words(example.answer) for example in examples) <= 16
    assert all("\n" not in example.text.replace("\n", "", 1) for example in examples)


def test_queries_average_no_more_than_fourteen_words() -> None:
    """The same, over all tasks."""
    lengths = [words(example.query) for example in splits()["pool"]]
    assert 9 <= sum(lengths) / len(lengths) <= 14


@pytest.mark.parametrize("task", SPECS)
def test_every_text_is_finished(task: str) -> None:
    """An unfilled slot or a sentence without its capital spoils the reading."""
    for example in of("pool", task) + of("test", task):
        assert not re.search(r"[\[\]{}|]", example.query), example.query
        assert "  " not in example.query
        if task != "mending_cards":  # its queries are records, not sentences
            assert example.query[0].isupper()
            assert example.query[-1] in ".?", example.query
            assert not re.search(r"[.?] [a-z]", example.query), example.query


@pytest.mark.parametrize("task", [*CLASSIFICATION, "inn_customs"])
@pytest.mark.parametrize("split", ["pool", "test"])
def test_every_text_tells_the_aspect_that_its_answer_stands_for(task: str, split: str) -> None:
    """A text under another kind's answer would teach noise and cap every figure."""
    answers = {key: kind.answer for key, kind in material(task).kinds.items()}
    told = {answers[key]: ideas for key, ideas in patterns(task).items()}
    for example in of(split, task):
        assert any(idea.search(example.query) for idea in told[example.answer]), example


def test_some_test_phrasings_are_new_and_some_known() -> None:
    """Known phrasings alone would be unfair to learning, new ones alone to word overlap."""
    for task in (name for name in CLASSIFICATION if not material(name).events):
        ideas = [idea for kind in patterns(task).values() for idea in kind]
        pool = [example.query for example in of("pool", task)]
        known = {idea for idea in ideas if any(idea.search(query) for query in pool)}
        new = [
            example
            for example in of("test", task)
            if not any(idea.search(example.query) for idea in known)
        ]
        assert len(new) == 0.6 * sample.TEST_PER_TASK


@pytest.mark.parametrize("task", SPECS)
def test_every_topic_comes_with_every_answer(task: str) -> None:
    """If a topic gave the answer away, matching topics would be enough."""
    written = material(task)
    if SPECS[task].kind == "generation":
        return
    answers = {kind.answer for kind in written.kinds.values()}
    seen = {
        (topic, example.answer)
        for example in of("pool", task)
        for topic in topics(written)
        if topic.casefold() in example.query.casefold()
    }
    pairs = set(product(topics(written), answers))
    assert len(seen & pairs) >= 0.9 * len(pairs)


def topics(written: Material) -> list[str]:
    if written.events:
        return [event["object"] for event in written.events]
    return list(written.slots[written.topic_slot])


def test_the_gold_option_is_the_answer_and_the_options_differ() -> None:
    """A gold index that points elsewhere would reward the wrong option."""
    for example in of("pool", "inn_customs") + of("test", "inn_customs"):
        assert example.gold is not None
        assert example.choices[example.gold] == example.answer
        assert len(set(example.choices)) == len(example.choices) == 4
    golds = Counter(example.gold for example in of("pool", "inn_customs"))
    assert min(golds.values()) > 0.15 * sample.POOL_PER_TASK, "the gold option's place is random"


def test_extracted_facts_stand_in_their_note_word_for_word() -> None:
    """An answer that the note does not hold could only be guessed."""
    for example in of("pool", "board_notes") + of("test", "board_notes"):
        first, second = example.answer.split(" | ")
        assert first != second
        for fact in (first, second):
            assert fact.casefold() in example.query.casefold(), example


def test_cards_name_the_customer_the_thing_and_the_day_of_their_record() -> None:
    """The house style may be anything; the facts must be the record's."""
    for example in of("pool", "mending_cards") + of("test", "mending_cards"):
        for fact in example.query.split("; ")[:3]:
            assert fact in example.answer, example
