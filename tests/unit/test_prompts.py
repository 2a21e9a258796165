"""Claims about how demonstrations and a query become a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exemplar.errors import PromptError
from exemplar.prompts import assemble, fit


def count_words(text: str) -> int:
    return len(text.split())


def test_the_nearest_demonstration_stands_last_before_the_query():
    """The LM heeds what is near: in the wrong order the best demonstration is wasted."""
    prompt = assemble(["near\nA", "far\nB"], "query")
    assert prompt == "far\nB\n\nnear\nA\n\nquery\n"


def test_zero_shot_is_the_query_and_a_line_break():
    """A leading empty line would be another prompt than the one the LM was scored on."""
    assert assemble([], "query") == "query\n"


def test_the_farthest_demonstration_goes_first_when_the_budget_is_short():
    """Dropping the nearest would throw away what the retriever is for."""
    texts = ["near a b", "middle a b", "far a b"]
    found = fit(texts, "q", count_tokens=count_words, budget=8)
    assert found == ("middle a b\n\nnear a b\n\nq\n", [0, 1])


def test_the_least_similar_goes_first_wherever_it_stands():
    """With the nearest at the front, dropping by place would throw the best one away."""
    texts = ["far a b", "middle a b", "near a b"]
    found = fit(texts, "q", count_tokens=count_words, budget=8, similarities=[0.1, 0.5, 0.9])
    assert found == ("near a b\n\nmiddle a b\n\nq\n", [1, 2])


def test_a_prompt_of_exactly_the_budget_fits():
    """Off by one, a demonstration would be lost in every full prompt."""
    assert fit(["a b"], "q", count_tokens=count_words, budget=3) == ("a b\n\nq\n", [0])


def test_a_query_that_does_not_fit_alone_is_an_error_with_both_numbers():
    """Cut silently, the LM would answer another question and the score would be noise."""
    with pytest.raises(PromptError, match=r"takes 3 tokens; expected at most 2"):
        fit(["x"], "one two three", count_tokens=count_words, budget=2)


TEXT = st.text(alphabet="ab \n", min_size=1, max_size=12)


@given(st.lists(TEXT, max_size=6), TEXT, st.integers(0, 60))
def test_no_text_is_ever_cut_and_no_more_than_needed_is_dropped(demonstrations, query, budget):
    """Half a demonstration teaches the LM a wrong format; one too few wastes context."""
    try:
        prompt, places = fit(demonstrations, query, count_tokens=len, budget=budget)
    except PromptError:
        assert len(query) + 1 > budget
        return
    num_kept = len(places)
    assert places == list(range(num_kept))
    kept = demonstrations[:num_kept]
    expected = "".join(f"{text}\n\n" for text in reversed(kept)) + query + "\n"
    assert prompt == expected
    assert len(prompt) <= budget
    if num_kept < len(demonstrations):
        assert len(prompt) + len(demonstrations[num_kept]) + 2 > budget
