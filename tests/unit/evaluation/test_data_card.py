"""The data card: what the report says about the examples that everything rests on."""

from exemplar.evaluation.data_card import describe
from exemplar.records import Example


def example(name, query, answer="yes", *, task="tickets", group="", choices=(), gold=None):
    return Example(name, task, query, (answer,), choices, gold, group)


def test_counts_and_lengths_are_those_of_the_examples():
    """A task of five test examples, or of pages of text, is read differently."""
    pool = [example("p1", "one two three"), example("p2", "one"), example("p3", "a b c d e f g")]
    test = [example("t1", "one two"), example("x1", "alone", task="codes")]
    codes, tickets = describe(iter(pool), pool[:2], test, {})
    assert (tickets.pool, tickets.train, tickets.test) == (3, 2, 1)
    assert (tickets.median_words, tickets.most_words) == (2, 7)  # of 1, 2, 3, 7: the lower median
    assert (codes.pool, codes.train, codes.test) == (0, 0, 1)
    assert codes.task == "codes"


def test_answers_are_told_as_shares_of_labels_places_or_texts():
    """An accuracy of 60 % means nothing where one label makes up 60 %."""
    labelled = [example(f"t{i}", f"q {i}", "no" if i < 3 else "yes") for i in range(4)]
    choices = [
        example(f"c{i}", f"c {i}", "b", task="choice", choices=("a", "b"), gold=1) for i in range(2)
    ]
    texts = [example(f"f{i}", f"f {i}", f"text {i}", task="free") for i in range(3)]
    cards = describe([], [], [*labelled, *choices, *texts], {"tickets": ("yes", "no", "maybe")})
    found = {card.task: card.answers.replace("\u00a0", " ") for card in cards}
    assert found == {
        "tickets": "no 75 %, yes 25 %, maybe 0 %",
        "choice": "choice 2 100 %, choice 1 0 %",
        "free": "text, 3 different answers",
    }


def test_test_examples_that_the_pool_has_too_are_counted():
    """Questions whose answer stands among the demonstrations measure memory, not method."""
    pool = [
        example("p1", "Where  is MY parcel?"),
        example("p2", "another", group="page 1"),
        example("p3", "third", group="page 9", task="codes"),
    ]
    test = [
        example("t1", "where is my parcel?"),
        example("t2", "new", group="page 1"),
        example("t3", "newer", group="page 1"),
        example("t4", "newest", group="page 9"),  # of another task: another passage
    ]
    codes, tickets = describe(pool, [], test, {})
    assert tickets.overlap == "1 by query, 2 by passage"
    assert codes.overlap == ""
    assert describe(pool[1:2], [], test[:1], {})[0].overlap == "none"
