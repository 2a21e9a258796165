"""Claims about scoring in parts: nothing is lost or scored twice, and shards make one whole."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exemplar.data.shares import Shard
from exemplar.errors import ConfigError, DataError, PromptError
from exemplar.lm.parts import Cut, Parts
from exemplar.lm.scoring import score_candidates
from exemplar.records import Candidates, Example

POOL = {
    f"e{n}": Example(f"e{n}", "mood", f"text number {n * 7 % 30}", ("good" if n % 2 else "bad",))
    for n in range(30)
}
DRAWN = [
    Candidates(f"e{q}", tuple(f"e{(q * 5 + step) % 20}" for step in range(1, 7)), (0.0,) * 6)
    for q in range(20, 30)
]
SEALED = {"data": "one", "candidates": "two"}


class LetterLm:
    """Scores a pair by its letters, and dies when its sequences are used up."""

    def __init__(self, lives=10**9):
        self.asked, self._lives = [], lives
        self.dtype, self.stats = "float32", self

    def figures(self):
        return {"sequences": len(self.asked)}

    def logprobs(self, prompts, answers, *, progress=None):
        pairs = list(zip(prompts, answers, strict=True))
        if len(self.asked) + len(pairs) > self._lives:
            raise KeyboardInterrupt
        self.asked += pairs
        return [-float(sum(map(ord, prompt + answer)) % 997) for prompt, answer in pairs]


def make(folder, *, sealed=SEALED, size=8):
    return Parts(folder, Cut(DRAWN, POOL, size=size), sealed)


def score(parts, lm, shard=None):
    return parts.score(lambda: lm, POOL, classification_tasks={"mood"}, shard=shard)


@pytest.fixture(scope="module")
def whole():
    return score_candidates(LetterLm(), DRAWN, POOL, classification_tasks={"mood"})


@given(
    st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=8, unique=True), max_size=12),
    st.integers(1, 40),
)
def test_every_pair_is_in_one_part_and_a_candidate_is_in_one_part(rows, size):
    """A pair in two parts costs twice; a candidate in two parts is computed twice."""
    drawn = [
        Candidates(f"q{n}", tuple(f"e{i}" for i in row), (0.0,) * len(row))
        for n, row in enumerate(rows)
    ]
    parts = [
        [(item.query_id, name) for item in part for name in item.candidate_ids]
        for part in Cut(drawn, POOL, size=size)
    ]
    flat = [pair for part in parts for pair in part]
    assert sorted(flat) == sorted((d.query_id, name) for d in drawn for name in d.candidate_ids)
    for one, other in combinations(parts, 2):
        assert not {name for _, name in one} & {name for _, name in other}
    assert all(len(part) >= size for part in parts[:-1])


def test_parts_put_together_are_the_scores_of_one_call(tmp_path, whole):
    """Shifted by one pair, every score would still look plausible."""
    parts = make(tmp_path / "parts")
    assert len(parts) > 3
    figures = score(parts, LetterLm())
    assert list(parts.merged()) == whole
    assert figures == {"parts": len(parts), "dtype": "float32", "sequences": 60}


@pytest.mark.parametrize("lives", [0, 9, 25, 59])
def test_after_a_death_only_the_parts_that_are_missing_are_scored(tmp_path, whole, lives):
    """Days of scoring are not to be repeated for the last hour."""
    dying = LetterLm(lives)
    with pytest.raises(KeyboardInterrupt):
        score(make(tmp_path / "parts"), dying)
    parts, second = make(tmp_path / "parts"), LetterLm()
    score(parts, second)
    assert not set(second.asked) & set(dying.asked)
    assert list(parts.merged()) == whole


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_shards_in_any_order_make_the_whole_and_share_nothing(tmp_path, whole, count):
    """Twenty machines that score the same pairs are one machine."""
    asked = []
    for number in range(count, 0, -1):
        lm = LetterLm()
        score(make(tmp_path / "parts"), lm, Shard(number, count))
        asked += lm.asked
    assert len(asked) == len(set(asked)) == 60
    parts = make(tmp_path / "parts")

    def refuse():
        raise AssertionError("nothing is left to score: the model must not be loaded")

    assert parts.score(refuse, POOL, classification_tasks={"mood"}) == {"parts": 0}
    assert list(parts.merged()) == whole


def test_parts_of_other_inputs_are_scored_again(tmp_path, whole):
    """Scores of another model or of older candidates would be mixed in unseen."""
    score(make(tmp_path / "parts", sealed={**SEALED, "candidates": "older"}), LetterLm())
    parts, lm = make(tmp_path / "parts"), LetterLm()
    assert len(parts.missing()) == len(parts)
    score(parts, lm)
    assert len(lm.asked) == 60
    assert list(parts.merged()) == whole


def test_a_damaged_part_is_one_clear_error(tmp_path):
    """Scoring over it would hide that a disk fails; a traceback would not say what to do."""
    parts = make(tmp_path / "parts")
    score(parts, LetterLm())
    damaged = sorted((tmp_path / "parts").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match=r"part-00002.parquet is not a readable Parquet file"):
        make(tmp_path / "parts").missing()


def test_deleted_parts_leave_nothing(tmp_path):
    """They are as large as the scores themselves."""
    parts = make(tmp_path / "parts")
    score(parts, LetterLm())
    parts.delete()
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text):
    """3/2 would score nothing and look done."""
    with pytest.raises(ConfigError, match="expected NUMBER/COUNT"):
        Shard.parse(text)
    assert Shard.parse("2/4") == Shard(2, 4)


def test_an_error_in_a_part_still_names_the_query(tmp_path):
    """The number of a pair within some part leads nobody to the example."""

    class Refusing(LetterLm):
        def logprobs(self, prompts, answers, *, progress=None):
            raise PromptError("item 0: too long", index=0)

    with pytest.raises(PromptError, match="query 'e2"):
        score(make(tmp_path / "parts"), Refusing())
