"""Losses of the reward model and of the retriever (paper, sections 3.3 and 3.4).

Shapes: B queries of a batch, N candidates of a query (the positive in column 0), D dimensions,
K = B * N candidates of the batch, M logits of a query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from exemplar.errors import TrainingError

_ONE_CANDIDATE = (
    "a softmax over one candidate is constant, so loss and gradient would be identically zero. "
    "Give each query its positive and at least one negative."
)


class Distillation(NamedTuple):
    """The retriever's loss and its two parts, each a scalar: the mean over the batch, in nats."""

    loss: Tensor
    kl: Tensor
    contrastive: Tensor


class Contrast(NamedTuple):
    """The loss of a retriever that learns by contrast alone, a scalar: the mean in nats."""

    loss: Tensor


def listwise(score_BN: Tensor) -> Tensor:
    """Return the softmax cross-entropy of the positive in column 0 against its row.

    Trains the reward model (paper, section 3.3). Raises `ValueError` on another shape than
    (B, N) and on N < 2, `TrainingError` on NaN.
    """
    if score_BN.dim() != 2 or score_BN.shape[0] == 0:
        raise ValueError(f"expected scores of shape (B, N), got {tuple(score_BN.shape)}.")
    if score_BN.shape[1] < 2:
        raise ValueError(f"expected N >= 2 candidates a query, got 1: {_ONE_CANDIDATE}")
    _refuse_nan("scores", score_BN)
    return functional.cross_entropy(score_BN, score_BN.new_zeros(len(score_BN), dtype=torch.long))


def distillation(
    query_BD: Tensor,
    candidate_BND: Tensor,
    reward_BN: Tensor,
    *,
    temperature: float = 0.01,
    contrastive_weight: float = 0.2,
    all_pairs: bool = True,
    teacher_temperature: float = 1.0,
    query_class_B: Tensor | None = None,
    candidate_class_BN: Tensor | None = None,
) -> Distillation:
    """Return KL(teacher || student) + contrastive_weight * InfoNCE (paper, section 3.4).

    Embeddings come L2-normalised: nothing is normalised here. The teacher is
    softmax(reward / teacher_temperature) over a query's own N candidates, the student
    softmax(similarity / temperature) over the same. See `contrastive_logits` for the other part.

    `query_class_B` and `candidate_class_BN` (integers, beyond the paper) name what counts as the
    same answer: whatever shares the query's class is then no negative of it in the contrastive
    part, its own positive excepted. None: everything else in the batch is a negative.

    Raises `ValueError` on shapes that do not fit each other, on N < 2 and on a temperature that is
    not above zero, `TrainingError` on NaN.
    """
    _check_distillation(query_BD, candidate_BND, reward_BN, temperature, teacher_temperature)
    _check_classes(query_class_B, candidate_class_BN)
    similarity_BN = torch.einsum("bd,bnd->bn", query_BD, candidate_BND)
    kl = functional.kl_div(
        functional.log_softmax(similarity_BN / temperature, dim=-1),
        functional.log_softmax(reward_BN / teacher_temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    contrastive = _contrastive(
        query_BD, candidate_BND, temperature, all_pairs, query_class_B, candidate_class_BN
    )
    return Distillation(kl + contrastive_weight * contrastive, kl, contrastive)


def contrast(
    query_BD: Tensor,
    candidate_BND: Tensor,
    *,
    temperature: float = 0.01,
    all_pairs: bool = False,
    query_class_B: Tensor | None = None,
    candidate_class_BN: Tensor | None = None,
) -> Contrast:
    """Return InfoNCE alone, the loss of EPR (Rubin, Herzig and Berant 2022, section 3).

    A query's positive competes with its own negatives and with the positives and negatives of all
    other queries in the batch. Arguments and errors are those of `distillation`.
    """
    _check_vectors(query_BD, candidate_BND, temperature)
    _check_classes(query_class_B, candidate_class_BN)
    return Contrast(
        _contrastive(
            query_BD, candidate_BND, temperature, all_pairs, query_class_B, candidate_class_BN
        )
    )


def _contrastive(
    query_BD: Tensor,
    candidate_BND: Tensor,
    temperature: float,
    all_pairs: bool,
    query_class_B: Tensor | None,
    candidate_class_BN: Tensor | None,
) -> Tensor:
    """Return InfoNCE of each query's positive, the mean over the batch."""
    logit_BM = contrastive_logits(query_BD, candidate_BND, all_pairs=all_pairs) / temperature
    own_B = torch.arange(len(query_BD), device=logit_BM.device) * candidate_BND.shape[1]
    if query_class_B is not None and candidate_class_BN is not None:
        same_BM = _same_class(query_class_B, candidate_class_BN, all_pairs=all_pairs)
        same_BM = same_BM.scatter(1, own_B[:, None], False)
        logit_BM = logit_BM.masked_fill(same_BM, float("-inf"))
    return functional.cross_entropy(logit_BM, own_B)


def contrastive_logits(query_BD: Tensor, candidate_BND: Tensor, *, all_pairs: bool) -> Tensor:
    """Return the similarities_BM that a query's positive competes with, itself at column b * N.

    Without `all_pairs`: the query with all K candidates of the batch. With it, three blocks more,
    each without its diagonal (which is -inf): the query's positive with the other queries, the
    query with the other queries, and its positive with the other positives.
    """
    query_candidate_BK = query_BD @ candidate_BND.flatten(0, 1).T
    if not all_pairs:
        return query_candidate_BK
    positive_BD = candidate_BND[:, 0]
    own_BB = torch.eye(len(query_BD), dtype=torch.bool, device=query_BD.device)
    blocks_BB = (positive_BD @ query_BD.T, query_BD @ query_BD.T, positive_BD @ positive_BD.T)
    others_BB = [block_BB.masked_fill(own_BB, float("-inf")) for block_BB in blocks_BB]
    return torch.cat([query_candidate_BK, *others_BB], dim=1)


def _same_class(query_class_B: Tensor, candidate_class_BN: Tensor, *, all_pairs: bool) -> Tensor:
    """Return, in the layout of `contrastive_logits`, what shares the class of the row's query."""
    columns = [candidate_class_BN.flatten()]
    if all_pairs:
        columns += [query_class_B, query_class_B, candidate_class_BN[:, 0]]
    return query_class_B[:, None] == torch.cat(columns)[None, :]


def _check_distillation(
    query_BD: Tensor,
    candidate_BND: Tensor,
    reward_BN: Tensor,
    temperature: float,
    teacher_temperature: float,
) -> None:
    if reward_BN.shape != candidate_BND.shape[:2]:
        raise ValueError(
            f"expected queries (B, D), candidates (B, N, D) and rewards (B, N), got "
            f"{tuple(query_BD.shape)}, {tuple(candidate_BND.shape)} and {tuple(reward_BN.shape)}. "
            "Rewards of another width would be spread over the candidates in silence and teach a "
            "wrong ranking."
        )
    _check_vectors(query_BD, candidate_BND, temperature)
    _check_positive("teacher_temperature", teacher_temperature)
    _refuse_nan("rewards", reward_BN)


def _check_vectors(query_BD: Tensor, candidate_BND: Tensor, temperature: float) -> None:
    shapes = [tuple(tensor.shape) for tensor in (query_BD, candidate_BND)]
    fitting = (
        query_BD.dim() == 2
        and candidate_BND.dim() == 3
        and shapes[1][0] == shapes[0][0] > 0
        and shapes[1][2] == shapes[0][1]
    )
    if not fitting:
        raise ValueError(
            f"expected queries (B, D) and candidates (B, N, D), got {shapes[0]} and {shapes[1]}."
        )
    if shapes[1][1] < 2:
        raise ValueError(f"expected N >= 2 candidates a query, got 1: {_ONE_CANDIDATE}")
    _check_positive("temperature", temperature)
    _refuse_nan("query embeddings", query_BD)
    _refuse_nan("candidate embeddings", candidate_BND)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"expected {name} > 0, got {value}: similarities are divided by it.")


def _check_classes(query_class_B: Tensor | None, candidate_class_BN: Tensor | None) -> None:
    if (query_class_B is None) != (candidate_class_BN is None):
        raise ValueError("give the classes of queries and of candidates, or neither.")


def _refuse_nan(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise TrainingError(
            f"the {name} contain NaN or infinity, which would spread into every weight at the next "
            "update. Lower the learning rate, or look for a damaged input."
        )
