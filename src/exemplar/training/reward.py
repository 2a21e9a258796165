"""The reward model: a cross-encoder that learns what the LM prefers (paper, section 3.3).

It reads (query + answer, candidate) and so knows the answer, which no retriever does; its scores
of all candidates, smoother than the LM's and far cheaper, are what the retriever learns from.

Shapes: B queries of a batch, N candidates of a query (the positive in column 0),
P pairs, S of them in a rank's share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, Unpack

import torch
from torch import Tensor
from tqdm import tqdm

from exemplar import seeding
from exemplar.devices import default_device
from exemplar.errors import ModelError, TrainingError
from exemplar.records import Candidates, Example, LlmScores, Rewards
from exemplar.training import figures, loop, sampling
from exemplar.training.crossencoder import CrossEncoder, Tokens, load_cross_encoder
from exemplar.training.losses import listwise
from exemplar.training.optimisation import prepare, resolve_dtype, tokens_of_a_pass
from exemplar.training.ranks import ALONE, Ranks

RANKING_ACCURACY = "ranking_accuracy"
"""The figure that the weights are kept by, and that a teacher is judged by."""

HELD_OUT_DRAWS = 4
"""Groups drawn of each held-out query: all its scores are there, and the figure is steadier."""

SLAB = 1024
"""Pairs that are sorted by length together when everything is scored: bounds the memory."""


def train_reward_model(
    init: str,
    examples_by_id: Mapping[str, Example],
    scores: Sequence[LlmScores],
    out: Path,
    *,
    seed: int,
    round: int,
    batch_size: int = 128,
    num_top: int = 3,
    num_bottom: int = 16,
    num_negatives: int = 7,
    max_length: int = 384,
    eval_fraction: float = 0.1,
    dropout: float = 0.1,
    freeze_layers: int = 0,
    gradient_checkpointing: bool = False,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    ranks: Ranks = ALONE,
    **options: Unpack[loop.Options],
) -> loop.TrainingReport:
    """Train a reward model on LM scores and write the folder `out`, whole or not at all.

    `init`: an encoder or cross-encoder (folder, hub id or package:...); one with a head of one
    output, such as an earlier round's reward model, keeps it. `examples_by_id`: queries and pool.
    A batch holds `batch_size` queries with 1 + `num_negatives` candidates each
    (`sampling.reward_group`), drawn anew in every epoch. The share `eval_fraction` of each task's
    queries is held out; the weights kept have the highest `ranking_accuracy` there, the share of
    groups whose positive scores highest. `batch_tokens` bounds one forward pass, not the batch
    (None: what suits the device). With several `ranks` each scores its share of the batch.

    Returns history and summary, which `out`/training.json holds too. Raises `ModelError`,
    `DataError` and `TrainingError`.
    """
    device = default_device()
    encoder = load_cross_encoder(
        init,
        dtype=resolve_dtype(dtype, device),
        max_length=max_length,
        head_seed=seeding.derive_seed(seed, "reward_training", round),
        device=device,
    )
    prepare(encoder.model, dropout, freeze_layers, gradient_checkpointing)
    lesson = _Listwise(
        encoder,
        examples_by_id,
        scores,
        seeds=(seed, "reward_training", round),
        sizes={"num_top": num_top, "num_bottom": num_bottom, "num_negatives": num_negatives},
        batch_tokens=batch_tokens or tokens_of_a_pass(device),
        ranks=ranks,
    )
    lesson.split(eval_fraction, batch_size)
    return loop.train_into(
        out,
        encoder,
        lesson,
        best_by=RANKING_ACCURACY,
        seeds=(seed, "reward_training", round),
        settings=(
            (init, max_length, encoder.dtype, dropout, freeze_layers),
            batch_size,
            eval_fraction,
        ),
        ranks=ranks,
        **options,
    )


class _PairTexts:
    """All texts, tokenised once, and the pairs made from them."""

    def __init__(
        self,
        encoder: CrossEncoder,
        examples_by_id: Mapping[str, Example],
        records: Sequence[LlmScores] | Sequence[Candidates],
    ) -> None:
        ids = {i: None for record in records for i in (record.query_id, *record.candidate_ids)}
        self._examples_by_id = examples_by_id
        self._tokens = encoder.tokenize(examples_by_id[i].text for i in ids)
        self._join = encoder.join

    def pair(self, query_id: str, candidate_id: str) -> tuple[Tokens, Tokens]:
        query, candidate = self._examples_by_id[query_id], self._examples_by_id[candidate_id]
        return self._join(self._tokens[query.text], self._tokens[candidate.text])


class _Listwise:
    """The loss of an update, and the figures on held-out queries."""

    def __init__(
        self,
        encoder: CrossEncoder,
        examples_by_id: Mapping[str, Example],
        scores: Sequence[LlmScores],
        *,
        seeds: tuple[int, str, int],
        sizes: Mapping[str, int],
        batch_tokens: int,
        ranks: Ranks,
    ) -> None:
        sampling.require_examples(examples_by_id, scores)
        self._encoder, self._batch_tokens, self._ranks = encoder, batch_tokens, ranks
        self._seeds, self._sizes = seeds, sizes
        self._scores = {record.query_id: record for record in scores}
        self._queries = [examples_by_id[query_id] for query_id in self._scores]
        self._texts = _PairTexts(encoder, examples_by_id, scores)
        self.data: Sequence[object] = (sorted(sizes.items()), scores)

    def split(self, eval_fraction: float, batch_size: int) -> None:
        """Hold queries out, and lay the others out in batches."""
        train, held_out = sampling.split_held_out(self._queries, eval_fraction, self._seeds[0])
        usable = [query for query in train if self._draw(query, "usable")]
        self._held_out = [query for query in held_out if self._draw(query, "usable")]
        if not self._held_out:
            raise TrainingError(
                f"none of the {len(held_out)} held-out queries has both an eligible candidate and "
                "another one, so the reward model could not be judged. Score more candidates a "
                "query, or raise eval_fraction."
            )
        self._batches = sampling.Batches(usable, batch_size, *self._seeds)
        self.counts = {
            "num_queries": len(usable),
            "num_held_out": len(self._held_out),
            "num_unused": len(self._queries) - len(usable) - len(self._held_out),
        }

    def _draw(self, query: Example, *moment: object) -> sampling.Group | None:
        generator = seeding.rng(*self._seeds, *moment, query.example_id)
        return sampling.reward_group(self._scores[query.example_id], generator, **self._sizes)

    def _group(self, query: Example, *moment: object) -> sampling.Group:
        group = self._draw(query, *moment)
        assert group is not None, "whether a query has a group does not depend on the draw"
        return group

    def loss_at(self, update: int) -> dict[str, Tensor]:
        """Return the listwise loss of one batch."""
        epoch, queries = self._batches.at(update)
        keys = []
        for query in queries:
            positive, negatives = self._group(query, "epoch", epoch)
            ids = self._scores[query.example_id].candidate_ids
            keys.append([(query.example_id, ids[i]) for i in (positive, *negatives)])
        unique = {key: place for place, key in enumerate(dict.fromkeys(chain(*keys)))}
        score_P = self._score(list(unique))
        places_BN = torch.tensor([[unique[key] for key in row] for row in keys])
        return {"loss": listwise(score_P[places_BN.to(score_P.device)])}

    def _score(self, keys: Sequence[tuple[str, str]]) -> Tensor:
        """Return the scores_P of pairs, with gradients; each rank computes its share."""
        pairs = [self._texts.pair(*key) for key in keys]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        share = [pairs[i] for i in self._ranks.share(order)]
        score_S = self._encoder.score(share, batch_tokens=self._batch_tokens)
        score_P = self._ranks.gather(score_S, len(pairs))
        return score_P[torch.tensor(order).argsort().to(score_P.device)]

    def evaluate(self) -> dict[str, float]:
        """Return the figures on held-out queries: means over queries, or over their groups."""
        keys = [
            (query.example_id, candidate_id)
            for query in self._held_out
            for candidate_id in self._scores[query.example_id].candidate_ids
        ]
        score_P = self._score(keys).cpu()
        by_query: dict[str, list[float]] = defaultdict(list)
        for (query_id, _), score in zip(keys, score_P.tolist(), strict=True):
            by_query[query_id].append(score)
        rows: dict[str, list[float]] = defaultdict(list)
        for query in self._held_out:
            scores, ranking = by_query[query.example_id], self._ranking(query)
            places = [-float(ranking.index(i)) for i in range(len(ranking))]
            rows["pair_accuracy"].append(figures.pair_accuracy(scores, ranking))
            rows["spearman"].append(figures.spearman(scores, places))
            for draw in range(HELD_OUT_DRAWS):
                positive, negatives = self._group(query, "held_out", draw)
                hit = figures.picks_positive(scores, positive, negatives)
                group = torch.tensor([[scores[i] for i in (positive, *negatives)]])
                rows["loss"].append(float(listwise(group)))
                rows[RANKING_ACCURACY].append(float(hit))
                rows[f"{RANKING_ACCURACY}/{query.task}"].append(float(hit))
                rows["chance"].append(figures.chance_of_picking(negatives))
        return {name: fmean(values) for name, values in rows.items()}

    def _ranking(self, query: Example) -> list[int]:
        return sampling.llm_ranking(self._scores[query.example_id])


def require_teacher(summary: Mapping[str, Any], bound: float) -> None:
    """Raise `TrainingError` unless the reward model ranks well enough to teach the retriever.

    `summary`: that of `train_reward_model`; `bound`: the lowest ranking accuracy, 0 to 1.
    """
    accuracy = summary[loop.HELD_OUT + RANKING_ACCURACY]
    if accuracy < bound:
        raise TrainingError(
            f"the reward model is too weak to teach: expected a ranking accuracy of at least "
            f"{bound:.3f} on held-out queries, got {accuracy:.3f}, where blind guessing gives "
            f"{summary[loop.HELD_OUT + 'chance']:.3f} ({summary['num_held_out']} queries). "
            "A retriever taught by it would learn noise. Score more queries, train longer or with "
            "a higher learning rate, start from another model, or lower min_accuracy knowingly."
        )


def score_rewards(
    model_dir: Path,
    examples_by_id: Mapping[str, Example],
    candidates: Sequence[Candidates],
    *,
    batch_tokens: int = 8192,
    dtype: str = "auto",
    progress: str | None = None,
) -> list[Rewards]:
    """Return the reward of every candidate of every query, in the order given.

    Pairs of like length are computed together, at most `batch_tokens` tokens with padding. Raises
    `ModelError` where `model_dir` holds no reward model or the model gives NaN or infinity, and
    `DataError` where an example is unknown.
    """
    sampling.require_examples(examples_by_id, candidates)
    device = default_device()
    loaded = load_cross_encoder(str(model_dir), dtype=resolve_dtype(dtype, device), device=device)
    encoder = loaded.for_inference()
    texts = _PairTexts(encoder, examples_by_id, candidates)
    keys = [(record.query_id, i) for record in candidates for i in record.candidate_ids]
    rewards: list[float] = []
    with (
        torch.inference_mode(),
        tqdm(total=len(keys), desc=progress, disable=progress is None, unit="pair") as bar,
    ):
        for start in range(0, len(keys), SLAB):
            slab = keys[start : start + SLAB]
            score_P = encoder.score([texts.pair(*key) for key in slab], batch_tokens=batch_tokens)
            _refuse_broken(model_dir, slab, score_P)
            rewards += score_P.tolist()
            bar.update(len(slab))
    values = iter(rewards)
    return [
        Rewards(
            record.query_id, record.candidate_ids, tuple(next(values) for _ in record.candidate_ids)
        )
        for record in candidates
    ]


def _refuse_broken(model_dir: Path, keys: Sequence[tuple[str, str]], score_P: Tensor) -> None:
    broken = (~torch.isfinite(score_P)).nonzero().flatten().tolist()
    if broken:
        query_id, candidate_id = keys[broken[0]]
        raise ModelError(
            f"{model_dir} gave {float(score_P[broken[0]])} for query {query_id!r} with candidate "
            f"{candidate_id!r}. Its weights are broken, perhaps by training that diverged: train "
            "it again with a lower learning rate, or use dtype float32."
        )
