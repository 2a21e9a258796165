"""The retriever: a bi-encoder distilled from the reward model (paper, section 3.4).

Given the LM's scores in place of rewards it learns by contrast alone instead, which is EPR (Rubin,
Herzig and Berant 2022), a baseline of the paper.

Shapes: B queries of a batch, N candidates of a query (the positive in column 0), U different
texts, D dimensions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor

from exemplar.devices import default_device
from exemplar.errors import TrainingError
from exemplar.records import Example, LlmScores, Rewards
from exemplar.retrieval.encoder import Encoder
from exemplar.training import figures, loop, losses, sampling
from exemplar.training.groups import Groups, Judged, Row, Vectors, texts_of
from exemplar.training.optimisation import prepare, resolve_dtype, tokens_of_a_pass
from exemplar.training.ranks import ALONE, Ranks

GROUP_ACCURACY = "group_accuracy"
"""The figure that the weights are kept by."""

Loss: TypeAlias = losses.Distillation | losses.Contrast

AGREEMENT_AT = 3
"""How many of the nearest candidates `label_agreement` looks at."""

HELD_OUT_DRAWS = 4
"""Groups drawn of each held-out query: its similarities are there anyway."""


def train_retriever(
    init: str,
    examples_by_id: Mapping[str, Example],
    judged_by_round: Sequence[Sequence[Judged]],
    out: Path,
    *,
    seed: int,
    round: int,
    classification_tasks: Collection[str] = (),
    llm_scores: Sequence[LlmScores] = (),
    batch_size: int = 256,
    num_top: int = 3,
    num_bottom: int = 16,
    num_negatives: int = 3,
    temperature: float = 0.01,
    teacher_temperature: float = 1.0,
    contrastive_weight: float = 0.2,
    homogeneous_batches: bool = False,
    mask_same_label: bool = False,
    max_length: int = 256,
    eval_fraction: float = 0.1,
    freeze_positions: bool = True,
    dropout: float = 0.1,
    freeze_layers: int = 0,
    gradient_checkpointing: bool = False,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    ranks: Ranks = ALONE,
    **options: Unpack[loop.Options],
) -> loop.TrainingReport:
    """Train a retriever on rewards or LM scores and write the folder `out`, whole or not at all.

    `init`: an encoder (folder, hub id or package:...). `examples_by_id`: queries and pool.
    `judged_by_round`: the rewards of rounds 1 to `round`, distilled (`losses.distillation`,
    `sampling.distill_group`), or LM scores, contrasted (`losses.contrast`,
    `sampling.contrast_group`). An epoch shows each query once, with a group from one of the
    rounds: rewards of two rounds come from two reward models and share no scale.
    `classification_tasks`: the tasks in which negatives must carry
    another label than the query. `llm_scores`: only to compare with. `mask_same_label` (beyond
    the paper): in those tasks nothing that carries the query's label is its negative in the
    contrastive part either. The weights kept have the highest `group_accuracy` on held-out
    queries, the share of groups whose positive is nearest. Defaults are the paper's; `options`:
    see `loop.Options`. With several `ranks` each embeds its share of the batch, at most
    `batch_tokens` at once (None: what suits the device).

    Returns history and summary, which `out`/training.json holds too. Raises `ModelError`,
    `DataError` and `TrainingError`.
    """
    encoder = Encoder.load(
        init, max_length=max_length, dtype=resolve_dtype(dtype, default_device())
    )
    prepare(encoder.model, dropout, freeze_layers, gradient_checkpointing)
    if freeze_positions:
        encoder.freeze_positions()
    groups = Groups(
        examples_by_id,
        judged_by_round,
        seeds=(seed, "kd_training", round),
        labelled=frozenset(classification_tasks),
        sizes={"num_top": num_top, "num_bottom": num_bottom, "num_negatives": num_negatives},
    )
    loss: partial[Any] = partial(
        losses.distillation,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        contrastive_weight=contrastive_weight,
    )
    if not groups.hold_rewards:
        loss = partial(losses.contrast, temperature=temperature)
    lesson = _Distillation(
        groups,
        Vectors(
            encoder,
            groups.texts(llm_scores),
            batch_tokens or tokens_of_a_pass(encoder.device),
            ranks,
        ),
        loss,
        llm_scores=llm_scores,
        mask_same_label=mask_same_label,
    )
    lesson.split(eval_fraction, batch_size, homogeneous=homogeneous_batches)
    model_settings = (init, max_length, encoder.dtype, dropout, freeze_layers, freeze_positions)
    return loop.train_into(
        out,
        encoder,
        lesson,
        best_by=GROUP_ACCURACY,
        seeds=groups.seeds,
        settings=(model_settings, batch_size, eval_fraction, homogeneous_batches, loss.keywords),
        ranks=ranks,
        **options,
    )


class _Distillation:
    """The loss of an update, and the figures on held-out queries."""

    def __init__(
        self,
        groups: Groups,
        vectors: Vectors,
        loss: Callable[..., Loss],
        *,
        llm_scores: Sequence[LlmScores],
        mask_same_label: bool,
    ) -> None:
        self._groups, self._vectors, self._loss = groups, vectors, loss
        self._llm_scores = {record.query_id: record for record in llm_scores}
        self._mask_same_label = mask_same_label
        self.data: Sequence[object] = (*groups.data, mask_same_label)

    def split(self, eval_fraction: float, batch_size: int, *, homogeneous: bool) -> None:
        """Hold queries out, and lay the others out in batches."""
        queries = [self._groups.examples_by_id[query_id] for query_id in self._groups.by_query]
        seed = self._groups.seeds[0]
        train, held_out = sampling.split_held_out(queries, eval_fraction, seed)
        usable = [query for query in train if self._groups.rows(query, "usable")]
        self._held_out = [query for query in held_out if self._groups.rows(query, "usable")]
        if not self._held_out:
            raise TrainingError(
                f"none of the {len(held_out)} held-out queries has a candidate that can be a "
                "negative, so the retriever could not be judged. Propose more candidates a query, "
                "or raise eval_fraction."
            )
        self._batch_size = batch_size
        self._batches = sampling.Batches(
            usable, batch_size, *self._groups.seeds, homogeneous=homogeneous
        )
        self.counts = {
            "num_queries": len(usable),
            "num_held_out": len(self._held_out),
            "num_unused": len(queries) - len(usable) - len(self._held_out),
        }

    def loss_at(self, update: int) -> dict[str, Tensor]:
        """Return the loss of one batch and its parts."""
        epoch, queries = self._batches.at(update)
        rows = [self._groups.row(query, "epoch", epoch) for query in queries]
        texts = [text for row in rows for text in (row.query.query, *texts_of(self._chosen(row)))]
        return self._lose(rows, *self._vectors.of(texts))._asdict()

    def _chosen(self, row: Row) -> list[Example]:
        candidates = self._groups.candidates(row.judged)
        return [candidates[i] for i in row.group]

    def _lose(self, rows: Sequence[Row], places: Mapping[str, int], vector_UD: Tensor) -> Loss:
        device = vector_UD.device
        chosen = [self._chosen(row) for row in rows]
        query_B = torch.tensor([places[row.query.query] for row in rows])
        candidate_BN = torch.tensor([[places[text] for text in texts_of(each)] for each in chosen])
        arguments = [vector_UD[query_B.to(device)], vector_UD[candidate_BN.to(device)]]
        if self._groups.hold_rewards:
            arguments.append(torch.tensor([row.rewards for row in rows], device=device))
        return self._loss(*arguments, **self._classes([row.query for row in rows], chosen, device))

    def _classes(
        self, queries: Sequence[Example], chosen: Sequence[Sequence[Example]], device: torch.device
    ) -> dict[str, Tensor]:
        """Number what counts as the same answer: labels, or the examples where there are none."""
        if not self._mask_same_label:
            return {}
        numbers: dict[tuple[str, ...], int] = {}

        def number(example: Example) -> int:
            labelled = self._groups.is_labelled(example)
            key = (example.task, example.answer) if labelled else (example.example_id,)
            return numbers.setdefault(key, len(numbers))

        candidate_BN = [[number(candidate) for candidate in row] for row in chosen]
        return {
            "query_class_B": torch.tensor([number(query) for query in queries], device=device),
            "candidate_class_BN": torch.tensor(candidate_BN, device=device),
        }

    def evaluate(self) -> dict[str, float]:
        """Return the figures on held-out queries, each the mean over queries or groups."""
        groups = self._groups
        texts = [query.query for query in self._held_out]
        for query in self._held_out:
            for record in (*groups.by_query[query.example_id], *self._scored(query)):
                texts += texts_of(groups.candidates(record))
        places, vector_UD = self._vectors.of(texts)

        def similarities(query: Example, record: Judged) -> list[float]:
            candidate_N = [places[text] for text in texts_of(groups.candidates(record))]
            return (vector_UD[candidate_N] @ vector_UD[places[query.query]]).tolist()

        figures_of: dict[str, list[float]] = defaultdict(list)
        for query in self._held_out:
            for judged in groups.by_query[query.example_id]:
                self._judge(query, judged, similarities(query, judged), figures_of)
            for scored in self._scored(query):
                ranking = sampling.llm_ranking(scored)
                targets = [-float(ranking.index(i)) for i in range(len(ranking))]
                correlation = figures.spearman(similarities(query, scored), targets)
                figures_of["llm_spearman"].append(correlation)
        for draw in range(HELD_OUT_DRAWS):
            rows = [groups.row(query, "held_out", draw) for query in self._held_out]
            for row in rows:
                scores = similarities(row.query, row.judged)
                hit = figures.picks_positive(scores, row.group[0], row.group[1:])
                figures_of[GROUP_ACCURACY].append(float(hit))
                figures_of["chance"].append(figures.chance_of_picking(row.group[1:]))
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                for name, value in self._lose(batch, places, vector_UD)._asdict().items():
                    figures_of[name] += [float(value)] * len(batch)
        return {name: fmean(values) for name, values in figures_of.items()}

    def _scored(self, query: Example) -> list[LlmScores]:
        record = self._llm_scores.get(query.example_id)
        return [] if record is None else [record]

    def _judge(
        self,
        query: Example,
        record: Judged,
        scores: Sequence[float],
        figures_of: dict[str, list[float]],
    ) -> None:
        """Add the figures of one list of candidates."""
        if isinstance(record, Rewards):
            figures_of["reward_spearman"].append(figures.spearman(scores, record.rewards))
        if self._groups.is_labelled(query):
            carries = [each.answer == query.answer for each in self._groups.candidates(record)]
            agreement = figures.agreement_at(scores, carries, AGREEMENT_AT)
            figures_of[f"label_agreement_at_{AGREEMENT_AT}"].append(agreement)
