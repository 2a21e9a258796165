"""Running a causal model over packs, within the memory there is.

Packs go through the model end to end in one row, attended by pieces (`pieces.py`); where a model's
attention cannot be taken over, side by side as rows of like length, under masks. The vocabulary
projection sees only the nodes whose logits are read. How many go at once is bounded twice: nodes,
for the activations, and nodes read, for the logits, which a large vocabulary makes larger than all
else. Where memory runs out all the same, the batch is cut in two and the budget halved.

Legend: T nodes of a pack, U nodes whose logits are read, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from exemplar.errors import ModelError
from exemplar.lm import attention
from exemplar.lm.memory import give_back, is_out_of_memory, too_large
from exemplar.lm.packing import Batch, IntArray, Pack, PackCost, packs
from exemplar.lm.pieces import Line

_MASKED = {"cpu": PackCost(dense=1800.0, fixed=2.0), "cuda": PackCost(dense=64e3, fixed=2.0)}
_BY_PIECES = PackCost(dense=math.inf, fixed=2.0)  # what a node attends to, no cut makes less
_PIECE_NODES = {"cpu": 32, "cuda": 128}
_FORWARD_NODES = {"cpu": 2048, "cuda": 1 << 16}  # nodes of all rows of one forward pass
_LOGIT_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # float32 logits of one forward pass


def check_finite(values: torch.Tensor, name: str) -> None:
    """Raise `ModelError` where the model returned NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"model {name!r} returned NaN or infinite logits. A broken or cut-off weights file "
            "does that, or float16 where the model overflows it: try dtype float32 or bfloat16."
        )


def new_cache() -> Any:
    """Return an empty cache of transformers that keeps everything, windowed layers included."""
    from transformers import DynamicCache

    return DynamicCache()


@dataclass(frozen=True)
class Row:
    """A pack with the nodes (U,) whose logits are read, and where each member finds its own."""

    pack: Pack
    nodes: IntArray
    places: tuple[IntArray, ...]

    @classmethod
    def of(cls, pack: Pack, starts: Sequence[int]) -> Row:
        """Read each member of `pack` from position `starts[member]` on."""
        paths = [path[starts[m] :] for m, path in zip(pack.members, pack.paths, strict=True)]
        nodes, places = np.unique(np.concatenate(paths), return_inverse=True)
        cuts = np.cumsum([len(path) for path in paths])[:-1]
        return cls(pack, nodes, tuple(np.split(places, cuts)))


@dataclass(frozen=True)
class Read:
    """Logits (U, V) of one pack, in float32, at the nodes where its members read them.

    `rows[i]`: the rows of `logits` for sequence `pack.members[i]`, one a position. `kept`: keys and
    values (1, G, T, D) of the pack's nodes, layer by layer, if they were asked for.
    """

    pack: Pack
    logits: torch.Tensor
    rows: tuple[IntArray, ...]
    kept: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()


class PackReader:
    """A causal model, and how much goes through it at once.

    `batch_tokens`: at most so many nodes a forward pass, padding included.
    """

    def __init__(self, model: Any, *, name: str, batch_tokens: int) -> None:
        self.model, self.name = model, name
        self._batch_tokens = batch_tokens
        kind = "cuda" if model.device.type == "cuda" else "cpu"
        config = model.config.get_text_config()
        self._forward_nodes = min(batch_tokens, _FORWARD_NODES[kind])
        self._max_reads = max(1, _LOGIT_BYTES[kind] // (4 * int(config.vocab_size)))
        self._masked_cost, self._piece_nodes = _MASKED[kind], _PIECE_NODES[kind]
        self.by_pieces = attention.take_over(model)
        self._cost, self._max_nodes = _BY_PIECES, self._forward_nodes
        if not self.by_pieces:
            self._with_masks()

    def use_masks(self) -> None:
        """Attend under masks from now on; for a model that is not exact by pieces."""
        attention.hand_back(self.model)
        self.by_pieces = False
        self._with_masks()

    def _with_masks(self) -> None:
        # Architectures with a causal or windowed matrix of their own (CodeGen, GPT-Neo) count in
        # places of the row, not in depths: no row may be longer than what they span.
        config = self.model.config.get_text_config()
        spans = [getattr(config, name, None) for name in ("max_position_embeddings", "window_size")]
        known = [span for span in spans if isinstance(span, int)]
        self._cost, self._max_nodes = self._masked_cost, min([self._batch_tokens, *known])

    def read(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, keep: bool = False
    ) -> Iterator[Read]:
        """Run the model over packs of `sequences`; read logits from position `starts[i]` on.

        `keep`: give their keys and values too; this takes attention by pieces. Raises `ModelError`
        where the logits are NaN, or one sequence alone exceeds the memory.
        """
        waiting = self._rows(range(len(sequences)), sequences, starts)
        while waiting:
            rows = self._take(waiting)
            logits_UV, cache = None, new_cache() if keep else None
            try:
                logits_UV = self.forward(
                    [row.pack for row in rows], [row.nodes for row in rows], cache
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if logits_UV is None:  # only here, after the error, nothing holds the batch's memory
                cache = None
                waiting += self._smaller(rows, sequences, starts)
                continue
            check_finite(logits_UV, self.name)
            parts = torch.split(logits_UV, [len(row.nodes) for row in rows])
            begin = 0
            for row, part_UV in zip(rows, parts, strict=True):
                end = begin + len(row.pack.tokens)
                layers = cache.layers if cache is not None else ()
                kept = tuple(
                    (at.keys[:, :, begin:end], at.values[:, :, begin:end]) for at in layers
                )
                yield Read(row.pack, part_UV, row.places, kept)
                begin = end

    def _rows(
        self, members: Sequence[int], sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Row]:
        """Pack some of the sequences, and return the rows, the longest last."""
        chosen = [sequences[member] for member in members]
        rows = []
        for pack in packs(chosen, max_nodes=self._max_nodes, cost=self._cost):
            own = tuple(members[place] for place in pack.members)
            rows.append(Row.of(replace(pack, members=own), starts))
        return sorted(rows, key=lambda row: len(row.pack.tokens))

    def _take(self, waiting: list[Row]) -> list[Row]:
        """Take rows of like length that go through together; always one, however long.

        The longest come first: what is too large shows at once.
        """
        rows: list[Row] = []
        reads = 0
        while waiting:
            reads += len(waiting[-1].nodes)
            nodes = self._nodes([*rows, waiting[-1]])
            if rows and (nodes > self._forward_nodes or reads > self._max_reads):
                break
            rows.append(waiting.pop())
        return rows

    def _nodes(self, rows: Sequence[Row]) -> int:
        """Return what rows take in one forward pass: under masks all are as long as the longest."""
        lengths = [len(row.pack.tokens) for row in rows]
        return sum(lengths) if self.by_pieces else len(lengths) * max(lengths)

    def _smaller(
        self, rows: list[Row], sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Row]:
        """Halve the budget after a batch that was too large; return its rows, to be taken again."""
        nodes = self._nodes(rows)
        members = rows[0].pack.members
        if len(rows) == len(members) == 1:
            raise too_large(self.name, nodes)
        give_back(self.model.device, nodes)
        self._forward_nodes = nodes // 2
        self._max_reads = max(1, sum(len(row.nodes) for row in rows) // 2)
        if len(rows) > 1:
            return rows[::-1]
        half = len(members) // 2
        self._max_nodes = nodes // 2
        return [
            row
            for part in (members[:half], members[half:])
            for row in self._rows(part, sequences, starts)
        ]

    @torch.inference_mode()
    def forward(
        self, packs: Sequence[Pack], nodes: Sequence[IntArray], cache: Any = None
    ) -> torch.Tensor:
        """Return the logits (U, V) in float32 at `nodes[i]` of pack i, pack after pack.

        By pieces, an empty `cache` of transformers takes the keys and values of the row's nodes.

        The projection to the vocabulary sees these nodes alone: they are picked on its doorstep,
        which works for every architecture, whatever it does to the logits afterwards.
        """
        device = self.model.device
        counts = [len(own) for own in nodes]
        places = np.concatenate(nodes)
        if self.by_pieces:
            line = Line.of(packs, self._piece_nodes)
            rows_U = torch.zeros(len(places), dtype=torch.long)
            places_U = torch.from_numpy(places + np.repeat(line.starts, counts))
            inputs = {"input_ids": line.tokens[None], "position_ids": line.depths[None]}
            mask = torch.zeros(1, 1, 1, 1, dtype=self.model.dtype, device=device)  # none is made
            attending: AbstractContextManager[None] = attention.over(
                attention.Plan(line.groups, len(line.tokens), device)
            )
        else:
            batch = Batch.of(packs)
            rows_U = torch.from_numpy(np.repeat(np.arange(len(packs)), counts))
            places_U = torch.from_numpy(places)
            inputs = {"input_ids": batch.tokens, "position_ids": batch.depths}
            mask = self._mask(batch)
            attending = nullcontext()

        def pick(_module: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (arguments[0][rows_U.to(device), places_U.to(device)][None],)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            with attending:
                output = self.model(
                    **{name: torch.from_numpy(rows).to(device) for name, rows in inputs.items()},
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
        finally:
            hook.remove()
        logits_UV: torch.Tensor = output.logits[0].float()
        return logits_UV

    def _mask(self, batch: Batch) -> torch.Tensor:
        """Return the mask (B, 1, T, T) that is added to the scores of attention."""
        visible_BTT = torch.from_numpy(batch.visible).to(self.model.device)
        # Additive, since eager attention adds it; every row sees itself, so none is all masked.
        mask_BTT = torch.zeros(visible_BTT.shape, dtype=self.model.dtype, device=self.model.device)
        mask_BTT.masked_fill_(~visible_BTT, torch.finfo(self.model.dtype).min)
        return mask_BTT[:, None]
