"""From a query's candidates to its demonstrations: which of them, and in which order.

Candidates come most similar first, so the place of one is its rank. Beside the plain top k there is
maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), one demonstration a group, and
labels in equal numbers; any of them together. Shape suffixes: N candidates, D embedding size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from exemplar.records import Candidates, Example
from exemplar.retrieval.members import Proposals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Order = Literal["nearest_last", "nearest_first", "by_label"]

_DECIMALS = 6  # products differ in their last bits from machine to machine


@dataclass(frozen=True)
class Rules:
    """How demonstrations are chosen among the `num_considered` nearest candidates.

    `mmr_lambda`: weight of the similarity with the query against that with the demonstrations
    chosen so far; None: no maximal marginal relevance. By default the nearest are chosen.
    """

    num_considered: int = 50
    mmr_lambda: float | None = None
    one_per_group: bool = False
    balance_labels: bool = False
    order: Order = "nearest_last"

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        return self.choosing or self.order != "nearest_last"

    @property
    def choosing(self) -> bool:
        """Whether others than the nearest candidates may be chosen."""
        return self.mmr_lambda is not None or self.one_per_group or self.balance_labels

    @property
    def by_traits(self) -> bool:
        """Whether groups or labels have a say, for which the pool has to be read."""
        return self.one_per_group or self.balance_labels or self.order == "by_label"

    def num_candidates(self, num_shots: int) -> int:
        """Return how many candidates are needed to choose `num_shots` of them."""
        return max(self.num_considered, num_shots) if self.choosing else num_shots


class Traits(NamedTuple):
    """What the rules ask of a pool example; `label` is None where answers are no labels."""

    group: str
    label: str | None


def demonstrations(
    proposed: Proposals,
    pool: Iterable[Example],
    rules: Rules,
    *,
    num_shots: int,
    labelled_tasks: Collection[str] = (),
    progress: str | None = None,
) -> Proposals:
    """Return at most `num_shots` demonstrations a query, the last in the prompt first.

    The answers of `labelled_tasks` are labels; candidates of other tasks are neither balanced nor
    put together by label. Without embeddings (those of BM25) `mmr_lambda` has no effect.
    """
    from tqdm.auto import tqdm

    traits = _traits(proposed, pool, labelled_tasks) if rules.by_traits else None
    ranks = []
    rows = tqdm(proposed, desc=progress, disable=progress is None, unit=" queries")
    for row, item in enumerate(rows):
        chosen = select(
            item.similarities,
            rules,
            k=num_shots,
            traits=[traits[name] for name in item.candidate_ids] if traits is not None else (),
            embeddings_ND=None if rules.mmr_lambda is None else proposed.embeddings(row),
        )
        ranks.append(chosen)
    return proposed.picked(ranks)


def select(
    similarities_N: Sequence[float],
    rules: Rules,
    *,
    k: int,
    traits: Sequence[Traits] = (),
    embeddings_ND: NDArray[np.float32] | None = None,
) -> list[int]:
    """Return the places of at most k of a query's candidates, the last in the prompt first.

    `traits` (N) where rules are `by_traits`, `embeddings_ND` for maximal marginal relevance.
    """
    labels = [trait.label for trait in traits if trait.label is not None]
    labelled = len(labels) == len(similarities_N)
    places = choose(
        similarities_N,
        k=k,
        groups=[trait.group for trait in traits] if rules.one_per_group else None,
        labels=labels if rules.balance_labels and labelled else None,
        embeddings_ND=embeddings_ND,
        mmr_lambda=1.0 if rules.mmr_lambda is None else rules.mmr_lambda,
    )
    return arranged(places, rules.order, labels if labelled else None)


def choose(
    similarities_N: Sequence[float],
    *,
    k: int,
    groups: Sequence[str] | None = None,
    labels: Sequence[Hashable] | None = None,
    embeddings_ND: NDArray[np.float32] | None = None,
    mmr_lambda: float = 1.0,
) -> list[int]:
    """Return the places of k candidates in the order in which they are chosen.

    One after the other, each the best that the rules leave; equal ones by rank. Best is the most
    similar to the query or, with unit `embeddings_ND`, the highest marginal relevance,
    `mmr_lambda` * similarity - (1 - `mmr_lambda`) * the highest cosine with one chosen before.
    `groups`: no two of one group, "" being none; fewer than k come where there are fewer groups.
    `labels`: one of those labels that were chosen least often among those still to be had.
    """
    import numpy as np

    relevance_N = mmr_lambda * np.asarray(similarities_N, dtype=np.float64)
    free_N = np.ones(len(relevance_N), dtype=bool)
    nearest_N = np.full(len(relevance_N), -np.inf)  # cosine with the nearest chosen one
    counts: Counter[Hashable] = Counter()
    chosen: list[int] = []
    while len(chosen) < k and free_N.any():
        allowed_N = free_N
        if labels is not None:
            counts_N = np.array([counts[label] for label in labels])
            allowed_N = free_N & (counts_N == counts_N[free_N].min())
        values_N = relevance_N
        if embeddings_ND is not None and chosen:
            cosines_N = embeddings_ND @ embeddings_ND[chosen[-1]]
            nearest_N = np.maximum(nearest_N, cosines_N)
            values_N = relevance_N - (1 - mmr_lambda) * nearest_N
        best = int(np.argmax(np.where(allowed_N, values_N.round(_DECIMALS), -np.inf)))
        chosen.append(best)
        free_N[best] = False
        if groups is not None and groups[best]:
            free_N &= np.array([group != groups[best] for group in groups])
        if labels is not None:
            counts[labels[best]] += 1
    return chosen


def arranged(
    places: Sequence[int], order: Order, labels: Sequence[Hashable] | None = None
) -> list[int]:
    """Return the places of chosen candidates from the end of the prompt to its front.

    "nearest_last" and "nearest_first" say where the most similar stands in the prompt. "by_label"
    keeps those of one label together, the label of the nearest last, and within a label the
    nearest last; without labels it is "nearest_last".
    """
    ranks = sorted(places)
    if order == "nearest_first":
        return ranks[::-1]
    if order == "by_label" and labels is not None:
        first: dict[Hashable, int] = {}
        for at in ranks:
            first.setdefault(labels[at], at)
        return sorted(ranks, key=lambda at: (first[labels[at]], at))
    return ranks


def _traits(
    proposed: Iterable[Candidates], pool: Iterable[Example], labelled_tasks: Collection[str]
) -> dict[str, Traits]:
    """Return the traits of all proposed examples by id, in one pass over the pool."""
    wanted = {name for item in proposed for name in item.candidate_ids}
    known: dict[str, str] = {}  # a passage is long, and many examples share it
    traits = {}
    for example in pool:
        if example.example_id in wanted:
            group = known.setdefault(example.group, example.group)
            answer = known.setdefault(example.answer, example.answer)
            label = answer if example.task in labelled_tasks else None
            traits[example.example_id] = Traits(group, label)
    return traits
