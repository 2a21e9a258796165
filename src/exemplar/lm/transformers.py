"""The engine on transformers: scoring and label decoding over packed prefix tries.

Candidates come first in a scoring prompt, so all queries that drew a candidate share it, and all
labels of a prompt share the prompt. `packing` lays the shared prefixes out once; here the model
runs over them, and the vocabulary projection only where an answer's token is predicted.

Legend: T nodes of a pack, U distinct nodes whose logits are read, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exemplar.errors import PromptError
from exemplar.lm.base import LmStats
from exemplar.lm.decoding import LineDecoder, by_length, check_finite, end_tokens
from exemplar.lm.encoding import Encoder, Scored
from exemplar.lm.labels import END, Prefix, branchings, descend
from exemplar.lm.meter import Meter
from exemplar.lm.packing import IntArray, Pack, PackCost, packs

_CHUNK = 2048  # sequences tokenised and packed together: bounds the memory, not the result
_COSTS = {"cpu": PackCost(dense=1500.0, fixed=30.0), "cuda": PackCost(dense=64e3, fixed=500.0)}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Read:
    """Logits of one pack at the nodes where its members read them.

    `rows[i]`: the rows of `logits_UV` for sequence `pack.members[i]`, one a position read.
    """

    pack: Pack
    logits_UV: torch.Tensor
    rows: tuple[IntArray, ...]


class TransformersLM:
    """A causal language model of transformers; implements `base.LanguageModel`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_length: int = 1024,
        batch_tokens: int = 4096,
    ) -> None:
        self.name = name
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.max_length = max_length
        self.stats = LmStats()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._batch_tokens = batch_tokens
        # Architectures that keep a causal matrix of their own take no longer rows than this.
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_nodes = min(batch_tokens, positions or batch_tokens)
        self._cost = _COSTS["cuda" if model.device.type == "cuda" else "cpu"]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` takes as a prompt."""
        return self._encoder.count(text)

    def logprobs(
        self, prompts: Sequence[str], answers: Sequence[str], *, progress: str | None = None
    ) -> list[float]:
        """Return the mean log-probability of each answer's tokens; see `base.LanguageModel`."""
        pairs = list(zip(prompts, answers, strict=True))
        copies = Counter(pairs)
        first = {pair: index for index, pair in reversed(list(enumerate(pairs)))}
        self._encoder.check(first, self.max_length)
        # Equal pairs are computed once. Sorted texts bring those with a common beginning into the
        # same chunk.
        distinct = sorted(first)
        results: dict[Pair, float] = {}
        with Meter(self.stats, f"scoring with {self.name}", len(pairs), progress) as meter:
            for begin in range(0, len(distinct), _CHUNK):
                chunk = distinct[begin : begin + _CHUNK]
                scored = self._encoder.joined(chunk, [first[p] for p in chunk], self.max_length)
                for read in self._read(
                    [item.tokens[:-1] for item in scored], [item.start - 1 for item in scored]
                ):
                    found = zip(read.pack.members, self._means(read, scored), strict=True)
                    results |= {chunk[member]: value for member, value in found}
                    many = {member: copies[chunk[member]] for member in read.pack.members}
                    meter.cut += sum(n for member, n in many.items() if scored[member].cut)
                    meter.done(
                        sum(many.values()),
                        given=sum(n * len(scored[member].tokens) for member, n in many.items()),
                        computed=len(read.pack.tokens_T),
                    )
        return [results[pair] for pair in pairs]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        labels: Sequence[str] | None = None,
        *,
        progress: str | None = None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt; see `base.LanguageModel`."""
        copies = Counter(prompts)
        first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
        with Meter(self.stats, f"decoding with {self.name}", len(prompts), progress) as meter:
            if labels is None:
                results = self._lines(first, copies, max_new_tokens, meter)
            else:
                results = self._labels(first, copies, labels, meter)
        return [results[prompt] for prompt in prompts]

    def _lines(
        self, first: Mapping[str, int], copies: Mapping[str, int], max_new: int, meter: Meter
    ) -> dict[str, str]:
        """Decode freely; `first` maps the distinct prompts to their indices."""
        prompts = list(first)
        tokens = self._encoder.prompts(prompts)
        for prompt, sequence in zip(prompts, tokens, strict=True):
            room = self.max_length - max_new
            if not 0 < len(sequence) <= room:
                raise PromptError(
                    f"item {first[prompt]}: its prompt has {len(sequence)} tokens; expected 1 to "
                    f"{room} (max_length {self.max_length} less {max_new} new ones). Use fewer "
                    "demonstrations, or raise max_length."
                )
        decoder = LineDecoder(self.model, self.tokenizer, name=self.name, max_new_tokens=max_new)
        results = {}
        for batch in by_length([len(sequence) for sequence in tokens], max_new, self._batch_tokens):
            before = decoder.tokens_computed
            lines = decoder.lines([tokens[index] for index in batch])
            results |= {prompts[index]: line for index, line in zip(batch, lines, strict=True)}
            many = [copies[prompts[index]] for index in batch]
            sizes = [len(tokens[i]) + self._encoder.length(results[prompts[i]]) for i in batch]
            meter.done(
                sum(many),
                given=sum(n * size for n, size in zip(many, sizes, strict=True)),
                computed=decoder.tokens_computed - before,
            )
        return results

    def _labels(
        self,
        first: Mapping[str, int],
        copies: Mapping[str, int],
        labels: Sequence[str],
        meter: Meter,
    ) -> dict[str, str]:
        """Decode within `labels`; every branching of every prompt is computed in one pass."""
        prompts, texts = sorted(first), list(dict.fromkeys(labels))
        ends = sorted(self._encoder.newlines() | end_tokens(self.model, self.tokenizer))
        results = {}
        step = max(1, _CHUNK // len(texts))
        for begin in range(0, len(prompts), step):
            chunk = prompts[begin : begin + step]
            trees = [self._label_tokens(prompt, texts, first[prompt]) for prompt in chunk]
            options = {prefix: found for tree in trees for prefix, found in branchings(tree).items()}
            prefixes = list(options)
            winners: dict[Prefix, int] = {}
            computed = 0
            for read in self._read(prefixes, [len(prefix) - 1 for prefix in prefixes]):
                computed += len(read.pack.tokens_T)
                for member, (row,) in zip(read.pack.members, read.rows, strict=True):
                    prefix = prefixes[member]
                    winners[prefix] = _likeliest(read.logits_UV[row], options[prefix], ends)
            for prompt, tree in zip(chunk, trees, strict=True):
                winner = descend(tree, lambda prefix, _: winners[prefix])
                results[prompt] = texts[winner]
            meter.done(
                sum(copies[prompt] for prompt in chunk),
                given=sum(
                    copies[prompt] * sum(map(len, tree))
                    for prompt, tree in zip(chunk, trees, strict=True)
                ),
                computed=computed,
            )
        return results
