"""Greedy generation of one line, batched with left padding and a key-value cache.

Legend: B rows of a batch, L tokens of its longest prompt, V vocabulary, G heads of keys and values,
D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from exemplar.lm.base import blank_line
from exemplar.lm.memory import give_back, is_out_of_memory, too_large
from exemplar.lm.reading import PackReader, check_finite

# Tokens of a forward pass over padded prompts. On a CPU small slabs stay in its cache: with
# SmolLM2-135M, prompts of 2,880 tokens took 1.7 times as long in one piece.
_SLAB_TOKENS = {"cpu": 1024, "cuda": 1 << 16}


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end a text for this model."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    several = ids if isinstance(ids, list) else [ids]
    return {i for i in [*several, tokenizer.eos_token_id] if i is not None}


@dataclass(frozen=True)
class Lines:
    """What a batch of prompts was answered with.

    `members`: the indices of its prompts; `texts` and `given`, the tokens of a prompt with its
    line, run beside them. `read`, `decoded`: the tokens that prompts and lines cost.
    """

    members: tuple[int, ...]
    texts: tuple[str, ...]
    given: tuple[int, ...]
    read: int
    decoded: int


class LineDecoder:
    """Greedy decoding up to the first newline, the end of the text or a number of tokens.

    A line must say something: tokens that would end it empty are barred as the first token.
    `batch_tokens`: at most so many tokens a batch, padding and new ones included.
    """

    def __init__(self, reader: PackReader, tokenizer: Any, *, batch_tokens: int) -> None:
        self.reader, self.tokenizer = reader, tokenizer
        self.model, self.name = reader.model, reader.name
        self._batch_tokens = batch_tokens
        self._ends = end_tokens(self.model, tokenizer)
        self._slab_tokens = _SLAB_TOKENS["cuda" if self.model.device.type == "cuda" else "cpu"]

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Lines]:
        """Decode prompts in batches of like length, the longest first.

        Where memory runs out, the batch is cut in two and the budget halved. Raises `ModelError`
        where the logits are NaN, or one prompt alone exceeds the memory.
        """
        waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        while waiting:
            longest = len(prompts[waiting[-1]]) + max_new_tokens
            size = max(1, self._batch_tokens // longest)
            members = waiting[-size:][::-1]
            del waiting[-size:]
            lines = None
            try:
                lines = self.lines(members, [prompts[index] for index in members], max_new_tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if lines is not None:
                yield lines
                continue
            if len(members) == 1:  # only here, after the error, nothing holds the batch's memory
                raise too_large(self.name, longest)
            give_back(self.model.device, len(members) * longest)
            self._batch_tokens = len(members) * longest // 2
            waiting += members[::-1]

    @torch.inference_mode()
    def lines(
        self, members: Sequence[int], prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Lines:
        """Decode one batch; `members` are the indices of its prompts."""
        inputs_BL, mask_BL = self._pad(prompts)
        lines_B: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # the prompts that the rows of the batch belong to
        if self.reader.by_pieces:
            logits_BV, cache, read = self._read_packed(prompts)
        else:
            logits_BV, cache = self._read_padded(inputs_BL, mask_BL)
            read = inputs_BL.numel()
        tokens = [self._first(logits_V) for logits_V in logits_BV]
        decoded = 0
        for step in range(max_new_tokens):
            if step > 0:
                inputs = torch.tensor(tokens, device=inputs_BL.device)[:, None]
                logits_BV, cache = self._forward(inputs, mask_BL, cache)
                decoded += len(tokens)
                check_finite(logits_BV.amax(-1), self.name)
                tokens = logits_BV.argmax(-1).tolist()
            going = []
            for row, token in enumerate(tokens):
                if rows[row] >= 0 and token not in self._ends:
                    lines_B[rows[row]].append(token)
                    if "\n" not in self._text([token]):
                        going.append(row)
                        continue
                rows[row] = -1
            if not going:
                break
            if len(going) <= len(rows) // 2:  # copying the cache pays from about here
                index = torch.tensor(going, device=mask_BL.device)
                cache.batch_select_indices(index)
                mask_BL = mask_BL[index]
                rows, tokens = [rows[row] for row in going], [tokens[row] for row in going]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)
        texts = tuple(self._text(line).split("\n", 1)[0].strip() for line in lines_B)
        given = tuple(
            len(prompt) + len(line) for prompt, line in zip(prompts, lines_B, strict=True)
        )
        return Lines(tuple(members), texts, given, read, decoded)

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(prompt) for prompt in prompts)
        pads = [longest - len(prompt) for prompt in prompts]
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        device = self.model.device
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def _read_packed(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any, int]:
        """Return the logits (B, V) after the prompts, their cache, and how many tokens were read.

        Prompts are read as packs are scored: what they share once, and without padding. The keys
        and values of each are then gathered into the padded cache that decoding goes on from.
        """
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        whole, read = DynamicCache(), 0
        logits: dict[int, torch.Tensor] = {}
        for found in self.reader.read(prompts, [len(prompt) - 1 for prompt in prompts], keep=True):
            read += len(found.pack.tokens)
            for member, path, (row,) in zip(
                found.pack.members, found.pack.paths, found.rows, strict=True
            ):
                logits[member] = found.logits[row]
                nodes = torch.from_numpy(path).to(self.model.device)
                for number, (keys, values) in enumerate(found.kept):
                    shape = (len(prompts), keys.shape[1], longest)
                    if number == len(whole.layers):
                        whole.update(
                            keys.new_zeros(*shape, keys.shape[3]),
                            values.new_zeros(*shape, values.shape[3]),
                            number,
                        )
                    layer, end = whole.layers[number], longest - len(nodes)
                    layer.keys[member, :, end:] = keys[0][:, nodes]
                    layer.values[member, :, end:] = values[0][:, nodes]
        return torch.stack([logits[member] for member in range(len(prompts))]), whole, read

    def _read_padded(
        self, inputs_BL: torch.Tensor, mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Return the logits (B, V) after the prompts, and their cache, filled slab by slab."""
        cache = None
        width = max(1, self._slab_tokens // len(inputs_BL))
        for slab in torch.split(inputs_BL, width, dim=1):
            seen = slab.shape[1] + (0 if cache is None else cache.get_seq_length())
            logits_BV, cache = self._forward(slab, mask_BL[:, :seen], cache)
        return logits_BV, cache

    def _forward(
        self, inputs: torch.Tensor, mask_BL: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """Return the logits (B, V) after the newest token of each row, and the grown cache."""
        positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=inputs,
            attention_mask=mask_BL,
            position_ids=positions_BL[:, -inputs.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float(), output.past_key_values

    def _first(self, logits_V: torch.Tensor) -> int:
        check_finite(logits_V.amax(), self.name)
        best = int(logits_V.argmax())
        if not blank_line(self._text([best])):
            return best
        ranked: list[int] = logits_V.argsort(descending=True).tolist()
        return next(token for token in ranked if not blank_line(self._text([token])))

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
