"""Progress, counters and the closing log line of one call to the engine."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from exemplar.lm.base import LmStats

logger = logging.getLogger(__name__)


class Meter:
    """Counts one call's work; at its end adds it to `total` and logs one line.

    The bar counts sequences, its postfix is tokens given per second.
    """

    def __init__(self, total: LmStats, what: str, sequences: int, progress: str | None) -> None:
        self.stats = LmStats()
        self.cut = 0
        self._total, self._what = total, what
        self._began = time.perf_counter()
        self._bar: Any = tqdm(
            total=sequences, desc=progress, disable=progress is None, unit="seq", mininterval=0.5
        )

    def __enter__(self) -> Meter:
        return self

    def done(self, sequences: int, *, given: int, computed: int) -> None:
        """Count finished sequences, their tokens and the tokens that went through the model."""
        self.stats.add(LmStats(sequences, given, computed))
        self.stats.seconds = time.perf_counter() - self._began
        self._bar.set_postfix_str(f"{self.stats.tokens_per_second:.0f} tokens/s", refresh=False)
        self._bar.update(sequences)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self.stats.seconds = time.perf_counter() - self._began
        self._total.add(self.stats)
        if kind is not None:
            return
        stats = self.stats
        logger.info(
            "%s: %d sequences, %d tokens given, %d computed (%.0f %% saved), %.0f tokens/s%s",
            self._what,
            stats.sequences,
            stats.tokens_given,
            stats.tokens_computed,
            100 * stats.share_saved,
            stats.tokens_per_second,
            f"; {self.cut} prompts lost their left end to fit" if self.cut else "",
        )
