"""Claims about in-context evaluation, with an LM whose answers are known beforehand."""

from dataclasses import replace

import pytest

from exemplar.errors import DataError, PromptError, TaskError
from exemplar.evaluation import icl
from exemplar.records import Example
from exemplar.tasks.spec import TaskSpec

SPECS = {
    "mood": TaskSpec("mood", "feeling", "classification", "accuracy", labels=("glad", "sad")),
    "tone": TaskSpec("tone", "feeling", "classification", "accuracy", labels=("glad", "sad")),
    "pick": TaskSpec("pick", "sense", "multiple_choice", "accuracy"),
    "find": TaskSpec("find", "reading", "generation", "squad"),
}


class FakeLM:
    """Answers from a table by the prompt's last line; tokens are words; remembers its calls."""

    name, dtype = "fake", "float32"

    def __init__(self, answers, max_length=1000):
        self.answers, self.max_length = answers, max_length
        self.calls = []

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, max_new_tokens=64, labels=None, *, progress=None):
        self.calls.append(("generate", list(prompts), labels, max_new_tokens))
        return [self.answers[prompt.splitlines()[-1]] for prompt in prompts]

    def logprobs(self, prompts, answers, *, progress=None):
        self.calls.append(("logprobs", list(zip(prompts, answers, strict=True)), None, None))
        return [
            self.answers[(p.splitlines()[-1], a)] for p, a in zip(prompts, answers, strict=True)
        ]


def text_example(name, task, query, *answers, group=""):
    return Example(name, task, query, answers, group=group)


SHOTS = [
    text_example("s1", "mood", "near one", "glad"),
    text_example("s2", "mood", "middle one", "sad"),
    text_example("s3", "mood", "far one", "glad"),
]
QUERIES = [
    text_example("m1", "mood", "sun", "glad"),
    text_example("f1", "find", "who", "Ada", "Ada L.", group="p1"),
    text_example("m2", "mood", "rain", "sad"),
    Example("p1", "pick", "fire is", ("hot",), ("cold", "hot"), 1),
    text_example("t1", "tone", "oh", "sad"),
]
ANSWERS = {
    "sun": "glad",
    "rain": "glad",
    "oh": "sad",
    "who": " the Ada\n",
    ("fire is", "cold"): -2.0,
    ("fire is", "hot"): -1.0,
}


def evaluate(lm, queries=QUERIES, shots=()):
    return icl.predict(
        lm, queries, {query.example_id: shots for query in queries}, SPECS, max_new_tokens=7
    )


def test_each_kind_of_task_is_answered_its_own_way_and_in_order():
    """A free answer to a classification, or a mixed-up order, would score as wrong answers."""
    lm = FakeLM(ANSWERS)
    outcomes = evaluate(lm)
    assert [outcome.example_id for outcome in outcomes] == ["m1", "f1", "m2", "p1", "t1"]
    assert [outcome.prediction for outcome in outcomes] == ["glad", "the Ada", "glad", "hot", "sad"]
    assert [outcome.score for outcome in outcomes] == [100, 100, 0, 100, 100]
    assert [outcome.group for outcome in outcomes] == ["", "p1", "", "", ""]
    assert [(call[0], len(call[1]), call[2], call[3]) for call in lm.calls] == [
        ("generate", 3, ("glad", "sad"), 7),
        ("generate", 1, None, 7),
        ("logprobs", 2, None, None),
    ]


def test_the_first_of_equally_likely_choices_wins():
    """Resolved by chance, a tie would change the score from run to run."""
    lm = FakeLM({("fire is", "cold"): -1.0, ("fire is", "hot"): -1.0})
    (outcome,) = evaluate(lm, QUERIES[3:4])
    assert outcome.prediction == "cold"


def test_prompts_hold_the_nearest_last_and_leave_room_for_the_answer():
    """Were no room left, the LM would cut the prompt from the left, and answers would differ."""
    # all three shots and the query take 10 tokens; the answer takes 1, and 2 stay free: 13
    lm = FakeLM(ANSWERS, max_length=12)
    (outcome,) = evaluate(lm, QUERIES[:1], SHOTS)
    assert lm.calls[0][1] == ["middle one\nsad\n\nnear one\nglad\n\nsun\n"]
    assert outcome.demonstration_ids == ("s1", "s2")
    assert outcome.num_dropped == 1


def test_a_query_that_does_not_fit_is_named():
    """In ten thousand examples the one at fault could not be found."""
    lm = FakeLM(ANSWERS, max_length=4)
    long = text_example("m9", "mood", "one two three four", "sad")
    with pytest.raises(PromptError, match=r"example 'm9' of 'mood': the query alone takes 4"):
        evaluate(lm, [QUERIES[0], long])
    assert not lm.calls


def test_queries_without_entry_or_definition_are_refused():
    """Taken for zero-shot, a lost row would lower the score without a word."""
    with pytest.raises(DataError, match="'m1' has no entry among the demonstrations"):
        icl.predict(FakeLM(ANSWERS), QUERIES[:1], {}, SPECS)
    other = replace(QUERIES[0], task="other")
    with pytest.raises(TaskError, match="'other', which has no definition"):
        icl.predict(FakeLM(ANSWERS), [other], {"m1": []}, SPECS)


def summary(**options):
    outcomes = evaluate(FakeLM(ANSWERS), QUERIES, SHOTS)
    queries = {query.example_id: query for query in QUERIES}
    return icl.summarise(outcomes, SPECS, queries, **options)


def test_the_average_is_over_tasks_and_a_category_over_its_own():
    """Averaged over examples, one large task would decide all (the paper's is over tasks)."""
    figures = summary(num_resamples=200)
    values = {task: facts["value"] for task, facts in figures["tasks"].items()}
    assert values == {"mood": 50, "tone": 100, "pick": 100, "find": 100}
    assert figures["average"]["value"] == 87.5
    assert figures["paper_average"] == 87.5
    assert {name: entry["value"] for name, entry in figures["categories"].items()} == {
        "feeling": 75,
        "reading": 100,
        "sense": 100,
    }
    assert figures["tasks"]["find"]["figures"] == {"em": 100, "f1": 100}
    assert figures["tasks"]["mood"]["num_examples"] == 2


def test_intervals_hold_their_value_and_repeat():
    """An interval that moves from run to run could not be published."""
    figures = summary(num_resamples=200)
    mood = figures["tasks"]["mood"]
    assert (mood["low"], mood["high"]) == (0, 100)  # two examples, one right: anything may be
    entries = [figures["average"], *figures["categories"].values(), *figures["tasks"].values()]
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in entries)
    assert figures == summary(num_resamples=200)


def test_label_agreement_is_the_share_of_demonstrations_with_the_query_s_label():
    """It is the cheap sign of what a retriever learnt; other kinds of task have no labels."""
    shown = {"m1": SHOTS, "m2": SHOTS, "f1": SHOTS, "p1": [], "t1": []}
    assert icl.label_agreement(QUERIES, shown, SPECS) == {"mood": pytest.approx((2 + 1) / 6)}


def test_the_page_of_examples_shows_right_and_wrong_with_their_prompts():
    """Figures alone hide a prompt that is malformed; people must be able to read it."""
    outcomes = evaluate(FakeLM(ANSWERS), QUERIES, SHOTS[:2])
    page = icl.examples_markdown(
        outcomes,
        {query.example_id: query for query in QUERIES},
        {shot.example_id: shot for shot in SHOTS},
        per_task=2,
    )
    assert "### m1: right" in page
    assert "### m2: wrong" in page
    assert "    near one\n    glad\n    \n    sun\n" in page
    assert "    Ada | Ada L." in page
    assert "Mean score 50.0 over 2 examples." in page
