"""LM scoring in parts: each is written when it is done, so that a kill costs at most one.

All (candidate, query) pairs are sorted by the candidate's text and cut between candidates: a part
holds every query that drew a candidate, and the engine computes the candidate's tokens once. How
the pairs are cut depends on nothing but the pairs, so several processes can share the parts of
one folder out among themselves, and whoever comes last puts them together.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.data.io import made_from, read_records, write_records
from exemplar.errors import ConfigError
from exemplar.lm.scoring import at, score_candidates
from exemplar.records import Candidates, Example, LlmScores

if TYPE_CHECKING:
    from exemplar.lm.base import LanguageModel


@dataclass(frozen=True)
class Shard:
    """The share of one process of `count`: parts `number`, `number` + `count`, ..., 1-based."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4". Raises `ConfigError` on anything else."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(
                f"shard {text!r}: expected NUMBER/COUNT with a number from 1 to the count of "
                "processes that share the work, for example 2/4."
            )
        return cls(int(number), int(count))


def cut(
    drawn: Sequence[Candidates], pool: Mapping[str, Example], *, size: int
) -> list[list[Candidates]]:
    """Return the pairs as parts of at least `size` pairs, the last one with what is left.

    A part is a list like `drawn`, with those of each query's candidates that fell to it; queries
    and candidates keep their order.
    """
    pairs = [
        (candidate_id, place, query)
        for query, item in enumerate(drawn)
        for place, candidate_id in enumerate(item.candidate_ids)
    ]
    # Unknown ids come first; the scoring of their part says what is wrong with them.
    texts = {name: (pool[name].task, pool[name].text) for name, _, _ in pairs if name in pool}
    pairs.sort(key=lambda pair: (texts.get(pair[0], ("", "")), pair[0], pair[2]))
    parts: list[list[tuple[int, int]]] = [[]]
    for _, members in groupby(pairs, key=lambda pair: pair[0]):
        if len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += [(query, place) for _, place, query in members]
    return [_by_query(part, drawn) for part in parts]


def _by_query(part: list[tuple[int, int]], drawn: Sequence[Candidates]) -> list[Candidates]:
    by_query = groupby(sorted(part), key=lambda pair: pair[0])
    return [at(drawn[query], [place for _, place in members]) for query, members in by_query]


class Parts:
    """The parts of one scoring, as files of a folder.

    `sealed`: the fingerprints of all that the scores depend on. A file of other fingerprints
    belongs to an earlier scoring; it counts as missing, and is written over.
    """

    def __init__(
        self, folder: Path, parts: Sequence[Sequence[Candidates]], sealed: Mapping[str, str]
    ) -> None:
        self._folder, self._parts, self._sealed = folder, parts, dict(sealed)

    def __len__(self) -> int:
        return len(self._parts)

    def missing(self, shard: Shard | None = None) -> list[int]:
        """Return the numbers of the parts, or of a shard's parts, that are still to be scored."""
        share = shard or Shard(1, 1)
        numbers = range(share.number, len(self._parts) + 1, share.count)
        return [number for number in numbers if not self._is_done(number)]

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
                self._parts[number - 1],
                pool,
                classification_tasks=classification_tasks,
                progress=progress and f"{progress}, part {number} of {len(self)}",
            )
            write_records(self._path(number), LlmScores, scores, made_from=self._sealed)
        return {"parts": len(missing), "dtype": lm.dtype, **lm.stats.figures()}

    def merged(self, drawn: Sequence[Candidates]) -> list[LlmScores]:
        """Return the scores of all parts, one record a query, in the order of `drawn`."""
        scores: dict[tuple[str, str], tuple[float, str]] = {}
        for number in range(1, len(self._parts) + 1):
            for item in read_records(self._path(number), LlmScores, made_from=self._sealed):
                values = zip(item.llm_logprobs, item.reasons, strict=True)
                for name, value in zip(item.candidate_ids, values, strict=True):
                    scores[item.query_id, name] = value
        merged = []
        for query in drawn:
            found = [scores[query.query_id, name] for name in query.candidate_ids]
            logprobs, reasons = (tuple(column) for column in zip(*found, strict=True))
            merged.append(LlmScores(query.query_id, query.candidate_ids, logprobs, reasons))
        return merged

    def delete(self) -> None:
        """Remove the folder, once the merged scores are safe."""
        shutil.rmtree(self._folder, ignore_errors=True)
