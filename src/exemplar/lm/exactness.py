"""Is a model exact over packed prefixes? Measured on a small trie when it is loaded.

Some architectures look at more than the ancestors of a token and its depth: ALiBi biases computed
from the row, recurrent states, attention in both directions. They would return plausible, wrong
numbers; so the logits over a pack are compared with those of each sequence alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from exemplar.errors import ModelError
from exemplar.lm.packing import PackCost, packs

if TYPE_CHECKING:
    from exemplar.lm.transformers import TransformersLM

# Sequences of token ids that share much, little and nothing.
_PROBE = ([5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12], [5, 13, 14, 9, 9, 7], [8, 8, 9])
_TOLERANCES = {torch.float32: 1e-3}  # of the logits' standard deviation
_HALF_TOLERANCE = 0.1


def check_packing(lm: TransformersLM) -> None:
    """Raise `ModelError` where packed and plain logits differ.

    A model that is not exact by pieces, for it does more than attend to what it is told, is tried
    under masks before it is refused.
    """
    problem = _problem(lm)
    if problem and lm.reader.by_pieces:
        lm.reader.use_masks()
        problem = _problem(lm)
    if problem:
        raise ModelError(
            f"model {lm.name!r} ({type(lm.model).__name__}) cannot be computed over packed "
            "prefixes: expected a causal transformer whose attention takes a mask and position "
            "ids, not ALiBi, a recurrent or a bidirectional model. Give another model. "
            f"{problem}"
        )


def _problem(lm: TransformersLM) -> str:
    """Return what is wrong with packed logits, "" if nothing."""
    rows = packs(_PROBE, max_nodes=64, cost=PackCost(dense=100.0, fixed=0.0))
    chosen = sorted(rows, key=lambda pack: -len(pack.tokens))
    assert len(chosen) > 1, "the probe must have rows that are padded"
    difference = 0.0
    try:
        packed = lm.reader.forward(chosen, [np.arange(len(pack.tokens)) for pack in chosen])
        parts = torch.split(packed, [len(pack.tokens) for pack in chosen])
        for pack, packed_TV in zip(chosen, parts, strict=True):
            for member, path in zip(pack.members, pack.paths, strict=True):
                with torch.inference_mode():
                    inputs = torch.tensor([_PROBE[member]], device=lm.model.device)
                    plain = lm.model(input_ids=inputs, use_cache=False).logits[0].float()
                gap = (packed_TV[torch.from_numpy(path)] - plain).abs().max() / plain.std()
                difference = max(difference, float(gap))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"It failed with: {error}"
    if not difference < _TOLERANCES.get(lm.model.dtype, _HALF_TOLERANCE):
        return f"Its logits moved by {difference:.2g} deviations."
    return ""
