"""What distillation shows of a query: a group of candidates, as vectors.

Shapes: U different texts, S of them in a rank's share, D dimensions.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from exemplar import seeding
from exemplar.records import Example, LlmScores, Rewards
from exemplar.retrieval.encoder import Encoder
from exemplar.training import sampling
from exemplar.training.optimisation import length_batches
from exemplar.training.ranks import ALONE, Ranks

Judged: TypeAlias = Rewards | LlmScores
"""A query's candidates as their teacher judged them: the reward model, or the LM itself."""


class Row(NamedTuple):
    """One query of a batch: its candidates as judged in one round, and the indices of its group."""

    query: Example
    judged: Judged
    group: tuple[int, ...]

    @property
    def rewards(self) -> list[float]:
        """The rewards of the group."""
        assert isinstance(self.judged, Rewards), "LM scores are ranked, never taken for rewards"
        return [self.judged.rewards[i] for i in self.group]


class Groups:
    """Which candidates a query is shown with."""

    def __init__(
        self,
        examples_by_id: Mapping[str, Example],
        judged_by_round: Sequence[Sequence[Judged]],
        *,
        seeds: tuple[int, str, int],
        labelled: frozenset[str],
        sizes: Mapping[str, int],
    ) -> None:
        self.examples_by_id, self.seeds = examples_by_id, seeds
        self._labelled, self._sizes = labelled, sizes
        self.data: Sequence[object] = (sorted(labelled), sorted(sizes.items()), judged_by_round)
        self.by_query: dict[str, list[Judged]] = defaultdict(list)
        self.hold_rewards = isinstance(next(chain(*judged_by_round), None), Rewards)
        for records in judged_by_round:
            sampling.require_examples(examples_by_id, records)
            for record in records:
                self.by_query[record.query_id].append(record)

    def is_labelled(self, query: Example) -> bool:
        """Whether the query's task is classification."""
        return query.task in self._labelled

    def candidates(self, judged: Judged) -> list[Example]:
        """Return the candidates' examples."""
        return [self.examples_by_id[i] for i in judged.candidate_ids]

    def texts(self, others: Sequence[LlmScores]) -> list[str]:
        """Return every text to embed: of queries without, of candidates with their answer."""
        sampling.require_examples(self.examples_by_id, others)
        records: list[Judged] = [*chain(*self.by_query.values()), *others]
        # By id, as most candidates recur in very many lists and each would make its text anew.
        queries = dict.fromkeys(record.query_id for record in records)
        candidates = dict.fromkeys(chain.from_iterable(record.candidate_ids for record in records))
        return [
            *(self.examples_by_id[query_id].query for query_id in queries),
            *texts_of(self.examples_by_id[candidate_id] for candidate_id in candidates),
        ]

    def rows(self, query: Example, *moment: object) -> list[Row]:
        """Draw a group from each round that gives one."""
        rows = []
        for place, judged in enumerate(self.by_query[query.example_id]):
            group = self._group(
                judged, query, seeding.rng(*self.seeds, *moment, query.example_id, place)
            )
            if group is not None:
                rows.append(Row(query, judged, (group[0], *group[1])))
        return rows

    def _group(
        self, judged: Judged, query: Example, generator: random.Random
    ) -> sampling.Group | None:
        rule: dict[str, Any] = {"drop_same_label": self.is_labelled(query), **self._sizes}
        if isinstance(judged, Rewards):
            return sampling.distill_group(judged, self.examples_by_id, query, generator, **rule)
        return sampling.contrast_group(judged, self.examples_by_id, query, generator, **rule)

    def row(self, query: Example, *moment: object) -> Row:
        """Draw a group, from a round that is drawn too."""
        generator = seeding.rng(*self.seeds, "round", *moment, query.example_id)
        return generator.choice(self.rows(query, *moment))


class Vectors:
    """Embeds texts that were tokenised once; of several ranks each embeds its share."""

    def __init__(
        self, encoder: Encoder, texts: Iterable[str], batch_tokens: int, ranks: Ranks = ALONE
    ) -> None:
        unique = list(dict.fromkeys(texts))
        self._tokens = dict(zip(unique, encoder.tokenize(unique), strict=True))
        self._encoder, self._batch_tokens, self._ranks = encoder, batch_tokens, ranks

    def of(self, texts: Iterable[str]) -> tuple[dict[str, int], Tensor]:
        """Return the place of each different text, and vector_UD with gradients.

        Texts of like length go through the model together: little is padding.
        """
        unique = sorted(dict.fromkeys(texts), key=lambda text: len(self._tokens[text]))
        tokens = [self._tokens[text] for text in self._ranks.share(unique)]
        batches = length_batches([len(ids) for ids in tokens], self._batch_tokens)
        share_SD = torch.cat(  # in the order dealt: batches keep that of sorted lengths
            [self._encoder.embed_tokens([tokens[i] for i in batch]) for batch in batches]
        )
        places = {text: place for place, text in enumerate(unique)}
        return places, self._ranks.gather(share_SD, len(unique))


def texts_of(examples: Iterable[Example]) -> list[str]:
    """Return the texts of candidates: query and answer."""
    return [example.text for example in examples]
