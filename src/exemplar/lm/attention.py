"""Attention over packs by pieces, as an attention function of transformers.

It takes part where a model asks transformers for its attention by name, which most do; what it
gathers for each piece is laid out in `pieces.py`. Outside of `over`, as in decoding with a cache,
it is transformers' own.

Legend: T nodes of the row, H heads, G heads of keys and values, D width of a head; n, Q, K as in
`pieces.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from exemplar.lm.pieces import Group

NAME = "exemplar_pieces"


class Plan:
    """The pieces of a row of `length` nodes on the model's device."""

    def __init__(self, groups: Sequence[Group], length: int, device: torch.device) -> None:
        self._device = device
        self.pieces = [(self._on(group.nodes), self._on(group.keys)) for group in groups]
        self._visible = [self._on(group.visible) for group in groups]
        self._masks: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        # Where each node of the row finds itself in the pieces of all groups, end to end.
        real = np.flatnonzero(np.concatenate([group.real.ravel() for group in groups]))
        nodes = np.concatenate([group.nodes.ravel() for group in groups])[real]
        places = np.zeros(length, dtype=np.int64)  # padding is given the first: nothing sees it
        places[nodes] = real
        self.places = self._on(places)

    def masks(self, copies: int, dtype: torch.dtype) -> list[Tensor]:
        """Return what to add to a group's scores (n, 1, copies x Q, K), the same for each copy."""
        found = self._masks.get((copies, dtype))
        if found is None:
            found = []
            for visible in self._visible:
                mask = torch.zeros(visible.shape, dtype=dtype, device=self._device)
                mask.masked_fill_(~visible, torch.finfo(dtype).min)
                found.append(mask.repeat(1, copies, 1)[:, None])
            self._masks[copies, dtype] = found
        return found

    def _on(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._device)


_PLAN: ContextVar[Plan | None] = ContextVar("plan of the row under way", default=None)


@contextmanager
def over(plan: Plan) -> Iterator[None]:
    """Let the models that are called inside attend by this plan."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)


def take_over(model: Any) -> bool:
    """Make a model attend by pieces, and return whether it can.

    It can where its attention is asked for by name and would be PyTorch's. Whether the result is
    right for this architecture is measured by `exactness.check_packing`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    own = model.config.get_text_config()._attn_implementation
    if own == NAME:
        return True
    if own != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def hand_back(model: Any) -> None:
    """Let a model attend as it did before `take_over`."""
    model.set_attn_implementation("sdpa")


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    """Return the attention (1, T, H, D) of query (1, H, T, D) to key and value (1, G, T, D).

    Raises `ValueError` where a model adds something else to the scores, as ALiBi does.
    """
    plan = _PLAN.get()
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    if settings.get("position_bias") is not None:
        raise ValueError("the model adds a bias of positions to its scores")
    num_heads, num_groups = query.shape[1], key.shape[1]
    copies = num_heads // num_groups  # queries that share keys stand below each other
    query_THD, key_TGD, value_TGD = (part[0].transpose(0, 1) for part in (query, key, value))
    attended = []
    for (nodes_nQ, keys_nK), mask in zip(plan.pieces, plan.masks(copies, query.dtype), strict=True):
        count, size = nodes_nQ.shape
        queries = query_THD[nodes_nQ].view(count, size, num_groups, copies, -1)
        piece = scaled_dot_product_attention(
            queries.permute(0, 2, 3, 1, 4).flatten(2, 3),
            key_TGD[keys_nK].transpose(1, 2),
            value_TGD[keys_nK].transpose(1, 2),
            attn_mask=mask,
            scale=settings.get("scaling"),
        )
        heads_last = piece.view(count, num_groups, copies, size, -1).permute(0, 3, 1, 2, 4)
        attended.append(heads_last.reshape(count * size, num_heads, -1))
    return torch.cat(attended)[plan.places][None], None
