"""From demonstrations and a query to the prompt that the LM reads (paper, section 3.1).

The prompt is the demonstrations, the farthest first and the nearest last unless they were arranged
otherwise, then the query, with an empty line between any two, and one line break at the end: the
answer starts a line of its own, as in every demonstration.
"""

from collections.abc import Callable, Sequence

from exemplar.errors import PromptError

_BETWEEN = "\n\n"


def assemble(demonstrations: Sequence[str], query: str) -> str:
    """Return the prompt for a query; `demonstrations` are given from the last to the first."""
    return _BETWEEN.join([*reversed(demonstrations), query]) + "\n"


def chat(demonstrations: Sequence[tuple[str, str]], query: str) -> list[dict[str, str]]:
    """Return the prompt as chat messages: a user's and an assistant's turn a demonstration.

    `demonstrations` are (query, answer) pairs, given nearest first; the nearest comes last, and
    after it the query as the user's last turn.
    """
    messages: list[dict[str, str]] = []
    for asked, answered in reversed(demonstrations):
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    return [*messages, {"role": "user", "content": query}]


def fit(
    demonstrations: Sequence[str],
    query: str,
    *,
    count_tokens: Callable[[str], int],
    budget: int,
    similarities: Sequence[float] | None = None,
) -> tuple[str, list[int]]:
    """Return the prompt of as many demonstrations as fit, and the places of those in the list.

    Whole demonstrations are dropped until the prompt counts at most `budget` tokens, the least
    similar first (without `similarities`, and among equal ones, the last given); no text is ever
    cut. The whole prompt is counted anew each time, because tokens may span the joints. Raises
    `PromptError` where the query alone exceeds the budget.
    """
    values = [0.0] * len(demonstrations) if similarities is None else similarities
    nearest = sorted(range(len(demonstrations)), key=lambda at: -values[at])
    num_tokens = 0
    for num_kept in range(len(demonstrations), -1, -1):
        kept = sorted(nearest[:num_kept])
        prompt = assemble([demonstrations[at] for at in kept], query)
        num_tokens = count_tokens(prompt)
        if num_tokens <= budget:
            return prompt, kept
    raise PromptError(
        f"the query alone takes {num_tokens} tokens; expected at most {budget}, which is the LM's "
        "max_length less what the answer needs. A cut query would be another question: raise "
        f"max_length, or leave the example out. It begins {query[:60]!r}."
    )
