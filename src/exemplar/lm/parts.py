"""LM scoring in parts: each is written when it is done, so that a kill costs at most one.

All (candidate, query) pairs are sorted by the candidate's text and cut between candidates: a part
holds every query that drew a candidate, and the engine computes the candidate's tokens once. How
the pairs are cut depends on nothing but the pairs, so several processes can share the parts of
one folder out among themselves, and whoever comes last puts them together.

Of all pairs only two numbers each are in memory at once; texts and scores of one part.

Legend: P pairs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exemplar.data.io import made_from, read_records, write_records
from exemplar.data.shares import Shard, gather_files, write_files
from exemplar.errors import DataError
from exemplar.lm.scoring import at, score_candidates
from exemplar.records import Candidates, Example, LlmScores

if TYPE_CHECKING:
    from exemplar.lm.base import LanguageModel

IntArray = NDArray[np.int64]


class Cut(Sequence[list[Candidates]]):
    """The pairs of `drawn` in parts of at least `size` pairs, the last one with what is left.

    A part is a list like `drawn`, with those of each query's candidates that fell to it; queries
    and candidates keep their order. It is made when it is asked for.
    """

    def __init__(
        self, drawn: Sequence[Candidates], pool: Mapping[str, Example], *, size: int
    ) -> None:
        self.drawn = drawn
        counts = [len(item.candidate_ids) for item in drawn]
        self.begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """(queries + 1,): where each query's pairs begin if all stand in the order of `drawn`."""
        names = {name for item in drawn for name in item.candidate_ids}
        # Unknown ids come first; the scoring of their part says what is wrong with them.
        texts = {name: (pool[name].task, pool[name].text) for name in names if name in pool}
        ordered = sorted(names, key=lambda name: (texts.get(name, ("", "")), name))
        rank = {name: number for number, name in enumerate(ordered)}
        rank_P = np.fromiter(
            (rank[name] for item in drawn for name in item.candidate_ids),
            dtype=np.int64,
            count=sum(counts),
        )
        part_of_rank = _share_out(np.bincount(rank_P, minlength=len(names)), size)
        part_P = part_of_rank[rank_P]
        self._pairs = np.argsort(part_P, kind="stable")
        self._ends = np.cumsum(np.bincount(part_P))

    def __len__(self) -> int:
        return len(self._ends)

    def pairs(self, number: int) -> IntArray:
        """Return the pairs of a part, each by its place in the order of `drawn`."""
        begin = self._ends[number - 1] if number else 0
        return self._pairs[begin : self._ends[number]]

    def __getitem__(self, number: int) -> list[Candidates]:  # type: ignore[override]
        pairs = self.pairs(number)
        query_P = np.searchsorted(self.begins, pairs, side="right") - 1
        queries, firsts = np.unique(query_P, return_index=True)
        places = np.split(pairs - self.begins[query_P], firsts[1:])
        return [
            at(self.drawn[query], own.tolist()) for query, own in zip(queries, places, strict=True)
        ]


def _share_out(counts: IntArray, size: int) -> IntArray:
    """Return the part of each item, in their order, a part being full once it counts `size`."""
    parts, part, filled = [], 0, 0
    for count in counts.tolist():
        if filled >= size:
            part, filled = part + 1, 0
        parts.append(part)
        filled += count
    return np.asarray(parts, dtype=np.int64)


class Parts:
    """The parts of one scoring, as files of a folder.

    `sealed`: the fingerprints of all that the scores depend on. A file of other fingerprints
    belongs to an earlier scoring; it counts as missing, and is written over.
    """

    def __init__(self, folder: Path, cut: Cut, sealed: Mapping[str, str]) -> None:
        self._folder, self._cut, self._sealed = folder, cut, dict(sealed)

    def __len__(self) -> int:
        return len(self._cut)

    def missing(self, shard: Shard | None = None) -> list[int]:
        """Return the numbers of the parts, or of a shard's parts, that are still to be scored."""
        return [number for number in self._numbers(shard) if not self._is_done(number)]

    def _numbers(self, shard: Shard | None) -> range:
        share = shard or Shard(1, 1)
        return range(share.number, len(self) + 1, share.count)

    def _is_done(self, number: int) -> bool:
        path = self._path(number)
        return path.is_file() and made_from(path) == self._sealed

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def score(
        self,
        load: Callable[[], LanguageModel],
        pool: Mapping[str, Example],
        *,
        classification_tasks: Collection[str],
        shard: Shard | None = None,
        progress: str | None = None,
    ) -> dict[str, Any]:
        """Score the missing parts, each kept as it is done, and return figures of the work.

        `load` is called only if there is any. The rest is as for `scoring.score_candidates`.
        """
        missing = self.missing(shard)
        if not missing:
            return {"parts": 0}
        lm = load()
        for number in missing:
            scores = score_candidates(
                lm,
                self._cut[number - 1],
                pool,
                classification_tasks=classification_tasks,
                progress=progress and f"{progress}, part {number} of {len(self)}",
            )
            write_records(self._path(number), LlmScores, scores, made_from=self._sealed)
        return {"parts": len(missing), "dtype": lm.dtype, **lm.stats.figures()}

    def merged(self) -> Iterator[LlmScores]:
        """Yield the scores of all parts, one record a query, in the order they were drawn in.

        Raises `DataError` where a part is missing, damaged or holds other pairs than its own.
        """
        drawn, begins = self._cut.drawn, self._cut.begins
        logprob_P = np.empty(begins[-1])
        reason_P = np.empty(begins[-1], dtype=object)
        for number in range(len(self)):
            path = self._path(number + 1)
            scores = read_records(path, LlmScores, made_from=self._sealed)
            if [_names(item) for item in scores] != [_names(item) for item in self._cut[number]]:
                raise DataError(
                    f"{path} holds scores of other pairs than part {number + 1} of this scoring. "
                    "Delete it and run the step again."
                )
            pairs = self._cut.pairs(number)
            logprob_P[pairs] = list(chain.from_iterable(item.llm_logprobs for item in scores))
            reason_P[pairs] = list(chain.from_iterable(item.reasons for item in scores))
        for item, begin, end in zip(drawn, begins[:-1], begins[1:], strict=True):
            own = slice(begin, end)
            yield LlmScores(
                item.query_id,
                item.candidate_ids,
                tuple(logprob_P[own].tolist()),
                tuple(reason_P[own].tolist()),
            )

    def write_share(self, out: Path, shard: Shard) -> None:
        """Copy a shard's parts into a folder of its own, for who cannot see this one."""
        paths = [self._path(number) for number in self._numbers(shard)]
        write_files(out, shard, paths, made_from=self._sealed)

    def gather(self, shares: Sequence[Path]) -> None:
        """Take over the parts of all shares. Raises `DataError` if they do not make one whole."""
        gather_files(shares, self._folder, made_from=self._sealed)

    def delete(self) -> None:
        """Remove the folder, once the merged scores are safe."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _names(item: Candidates | LlmScores) -> tuple[str, tuple[str, ...]]:
    return item.query_id, item.candidate_ids
