"""Claims about drawing and scoring candidates, with a language model made up in the test."""

from collections import Counter

import pytest

from exemplar.errors import DataError, PromptError
from exemplar.lm.scoring import draw_candidates, ineligible, score_candidates
from exemplar.records import OTHER_LABEL, OTHER_TASK, Candidates, Example

LABELLED = frozenset({"mood"})
POOL = {
    example.example_id: example
    for example in [
        Example("m1", "mood", "a fine day", ("good", "great")),
        Example("m2", "mood", "what a treat", ("good",)),
        Example("m3", "mood", "rain again", ("bad",)),
        Example("w1", "words", "sun in French", ("soleil",)),
        Example("w2", "words", "rain in French", ("pluie",)),
    ]
}


class RecordingLm:
    """Scores a pair by the length of its texts and keeps what it was asked."""

    def __init__(self, broken_at: int | None = None):
        self.asked: list[tuple[str, str]] = []
        self._broken_at = broken_at

    def logprobs(self, prompts, answers, *, progress=None):
        if self._broken_at is not None:
            raise PromptError(f"item {self._broken_at}: too long", index=self._broken_at)
        self.asked += zip(prompts, answers, strict=True)
        return [-float(len(prompt) + len(answer)) for prompt, answer in self.asked]


def candidates(query_id: str, *ids: str) -> Candidates:
    return Candidates(query_id, ids, tuple(float(-place) for place in range(len(ids))))


def many(count: int, size: int) -> list[Candidates]:
    return [candidates(f"q{n}", *(f"c{n}-{i}" for i in range(size))) for n in range(count)]


def test_prompt_and_answer_are_as_the_paper_gives_them():
    """Another line break or another answer gives other scores, and nothing would tell."""
    lm = RecordingLm()
    score_candidates(lm, [candidates("m1", "m3")], POOL, classification_tasks=LABELLED)
    assert lm.asked == [("rain again\nbad\n\na fine day\n", "good")]


def test_scores_stay_with_their_pairs():
    """Shifted by one, every score would still look plausible."""
    asked = [candidates("m1", "m2", "m3"), candidates("w1", "w2"), candidates("m2", "m1")]
    lm = RecordingLm()
    scores = score_candidates(lm, asked, POOL, classification_tasks=LABELLED)
    assert [(s.query_id, s.candidate_ids) for s in scores] == [
        (c.query_id, c.candidate_ids) for c in asked
    ]
    for item in scores:
        for name, found in zip(item.candidate_ids, item.llm_logprobs, strict=True):
            query, candidate = POOL[item.query_id], POOL[name]
            prompt = f"{candidate.query}\n{candidate.answers[0]}\n\n{query.query}\n"
            assert found == -float(len(prompt) + len(query.answers[0]))


def test_all_pairs_go_to_the_lm_in_one_call():
    """Call by call it could neither share prefixes nor fill a batch."""
    lm = RecordingLm()
    asked = [candidates("m1", "m2", "m3"), candidates("w1", "w2")]
    score_candidates(lm, asked, POOL, classification_tasks=LABELLED)
    assert len(lm.asked) == 3


@pytest.mark.parametrize(
    ("query", "candidate", "reason"),
    [
        ("m1", "m2", ""),
        ("m1", "m3", OTHER_LABEL),
        ("m1", "w1", OTHER_TASK),
        ("w1", "w2", ""),
        ("w1", "m1", OTHER_TASK),
    ],
)
def test_why_a_candidate_cannot_be_a_positive(query, candidate, reason):
    """The label rule is for labels alone: answers of other tasks are rarely equal."""
    assert ineligible(POOL[query], POOL[candidate], LABELLED) == reason


def test_a_candidate_that_is_not_in_the_pool_is_named():
    """Candidates of other data would otherwise end in a KeyError."""
    for item in (candidates("m1", "gone"), candidates("gone", "m1")):
        with pytest.raises(DataError, match="'gone', which is not in the pool"):
            score_candidates(RecordingLm(), [item], POOL, classification_tasks=LABELLED)


def test_an_answer_that_does_not_fit_names_its_query():
    """The number of a pair leads nobody to the example that must be shortened."""
    asked = [candidates("m1", "m2", "m3"), candidates("w1", "w2")]
    with pytest.raises(PromptError, match="query 'w1': item 2: too long"):
        score_candidates(RecordingLm(broken_at=2), asked, POOL, classification_tasks=LABELLED)


def test_a_draw_keeps_order_and_similarities():
    """The order is that of similarity; a shuffled one would be read as another ranking."""
    for before, after in zip(
        many(20, 9), draw_candidates(many(20, 9), num_candidates=4, seed=1, number=1), strict=True
    ):
        given = dict(zip(before.candidate_ids, before.similarities, strict=True))
        assert len(after.candidate_ids) == 4
        assert [given[name] for name in after.candidate_ids] == list(after.similarities)
        assert list(after.similarities) == sorted(after.similarities, reverse=True)


def test_a_query_draws_the_same_whoever_else_is_there():
    """Shards and reruns must score the same pairs."""
    everyone = many(12, 9)
    whole = draw_candidates(everyone, num_candidates=3, seed=1, number=1)
    shard = draw_candidates(everyone[::-1][2:7], num_candidates=3, seed=1, number=1)
    assert shard == whole[::-1][2:7]


def test_seed_and_round_give_other_draws():
    """The same places in every round would never look at the other candidates."""
    draws = {
        (seed, number): draw_candidates(many(12, 9), num_candidates=3, seed=seed, number=number)
        for seed in (1, 2)
        for number in (1, 2)
    }
    values = list(draws.values())
    assert all(a != b for i, a in enumerate(values) for b in values[:i])


def test_a_draw_is_fair():
    """Favouring the first places would make the draw a shorter candidate list."""
    drawn = draw_candidates(many(600, 6), num_candidates=2, seed=1, number=1)
    places = Counter(name.split("-")[1] for item in drawn for name in item.candidate_ids)
    assert len(places) == 6
    assert all(150 < count < 250 for count in places.values())  # 200 expected


def test_fewer_candidates_than_asked_for_come_whole():
    """Small tasks have few examples; that is no reason to stop."""
    (drawn,) = draw_candidates([candidates("m1", "m2")], num_candidates=5, seed=1, number=1)
    assert drawn == candidates("m1", "m2")
