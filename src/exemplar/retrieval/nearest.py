"""The nearest rows of an embedding matrix: exact on FAISS or a GPU, approximate on FAISS's IVF.

Shape suffixes: Q queries, N rows, K results a query, F fetched, D embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Found = tuple[NDArray[np.float32], NDArray[np.int64]]

Ranked = tuple[list[int], list[float]]
"""Places in the pool and their similarities, best first."""

# Similarities are compared to six decimals: the last bits of a float32 product depend on the
# block it was computed in, and would order equal texts differently from machine to machine.
_DECIMALS = 6
_ROWS_AT_ONCE = 1 << 18  # rows a GPU multiplies at once
_BLAS_FROM = 20  # queries; FAISS's own default leaves matrix products unused, 8 times slower

# Approximate search: cells of the inverted file for N rows, and rows fetched for each result
# before they are ranked by their true inner products.
_CELLS_PER_ROOT = 4
_FEWEST_A_CELL = 39  # rows, as FAISS asks for
_TRAINED_ON = 64  # rows a cell
_FETCHED = 4
_ROWS_ADDED = 1 << 16


def exact(
    queries_QD: NDArray[np.float32], rows_ND: NDArray[np.float32], k: int, device: str = "cpu"
) -> Found:
    """Return inner products and numbers of the k nearest rows of each query, nearest first.

    On the CPU by FAISS; on another device by PyTorch.
    """
    if device != "cpu":
        return by_products(queries_QD, rows_ND, k, device)
    import faiss

    faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM
    found: Found = faiss.knn(queries_QD, rows_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    return found


def among(
    index: Any,
    queries_QD: NDArray[np.float32],
    k: int,
    allowed_N: NDArray[np.bool_],
    span: tuple[int, int],
    hidden: Sequence[Collection[int]] | None = None,
) -> list[Ranked]:
    """Return the k nearest of the allowed rows in a stretch of a flat FAISS index; exact."""
    import faiss
    import numpy as np

    hidden = hidden or [()] * len(queries_QD)
    allowed_N = allowed_N.copy()
    allowed_N[: span[0]] = allowed_N[span[1] :] = False
    eligible = int(allowed_N.sum())
    packed = np.packbits(allowed_N, bitorder="little")
    parameters: Any = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(packed))  # type: ignore[call-arg, arg-type]
    fetch = k + max((len(places) for places in hidden), default=0) + 1
    while eligible:
        fetch = min(fetch, eligible)
        values_QF, places_QF = index.search(queries_QD, fetch, params=parameters)
        found = ranked(values_QF, places_QF, hidden)
        # A tie that reaches the end of what was fetched may have more members beyond it.
        tied = any(len(values) > k and values[k - 1] == values[-1] for _, values in found)
        if not tied or fetch == eligible:
            return [(places[:k], values[:k]) for places, values in found]
        fetch *= 4
    return [([], [])] * len(queries_QD)


def by_products(
    queries_QD: NDArray[np.float32],
    rows_ND: NDArray[np.float32],
    k: int,
    device: str,
    *,
    rows_at_once: int = _ROWS_AT_ONCE,
) -> Found:
    """Search as `exact` on a device of PyTorch's, by matrix products in float32.

    The rows pass through it block by block, so that they need not fit beside the encoder.
    """
    import torch

    queries = torch.from_numpy(queries_QD).to(device)
    values = torch.empty((len(queries), 0), device=device)
    numbers = torch.empty((len(queries), 0), dtype=torch.long, device=device)
    for start in range(0, len(rows_ND), rows_at_once):
        block = torch.tensor(rows_ND[start : start + rows_at_once], device=device)
        found, places = torch.topk(queries @ block.T, min(k, len(block)), dim=1)
        values = torch.cat([values, found], dim=1)
        numbers = torch.cat([numbers, places + start], dim=1)
        values, kept = torch.topk(values, min(k, values.shape[1]), dim=1)
        numbers = numbers.gather(1, kept)
    return values.cpu().numpy(), numbers.cpu().numpy()


class Approximate:
    """An inverted file over 8-bit copies of the rows, a quarter of their memory.

    A query visits the `probes` cells whose centres are nearest; what it finds there is ranked by
    the true inner products with the rows themselves, so similarities are exact and only
    candidates may be missed.
    """

    def __init__(self, index: Any, probes: int) -> None:
        self._index = index
        self._index.nprobe = probes

    @classmethod
    def build(cls, rows_ND: NDArray[np.float32], *, probes: int, seed: int = 0) -> Approximate:
        """Cluster a sample of the rows into cells and file all of them."""
        import faiss
        import numpy as np

        most = len(rows_ND) // _FEWEST_A_CELL
        cells = max(1, min(int(_CELLS_PER_ROOT * len(rows_ND) ** 0.5), most))
        index: Any = faiss.index_factory(
            rows_ND.shape[1], f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT
        )
        faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM
        index.cp.seed = seed
        drawn = np.random.default_rng(seed).choice(
            len(rows_ND), min(len(rows_ND), _TRAINED_ON * cells), replace=False
        )
        index.train(rows_ND[np.sort(drawn)])
        for start in range(0, len(rows_ND), _ROWS_ADDED):
            index.add(rows_ND[start : start + _ROWS_ADDED])
        return cls(index, probes)

    def search(
        self, queries_QD: NDArray[np.float32], rows_ND: NDArray[np.float32], k: int
    ) -> Found:
        """As `exact`; where fewer than k rows were found the rest is -inf and -1."""
        import numpy as np

        fetched = min(_FETCHED * k, len(rows_ND))
        _, numbers_QF = self._index.search(queries_QD, fetched)
        values_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        numbers_QK = np.full((len(queries_QD), k), -1, dtype=np.int64)
        for row, (query_D, numbers_F) in enumerate(zip(queries_QD, numbers_QF, strict=True)):
            numbers = np.sort(numbers_F[numbers_F >= 0])  # equal products keep the order of rows
            values = rows_ND[numbers] @ query_D
            best = np.argsort(-values, kind="stable")[:k]
            values_QK[row, : len(best)] = values[best]
            numbers_QK[row, : len(best)] = numbers[best]
        return values_QK, numbers_QK

    def save(self, path: Path) -> None:
        """Write the index without the rows."""
        import faiss

        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path) -> Approximate:
        """Read what `save` wrote."""
        import faiss

        index: Any = faiss.read_index(str(path))
        return cls(index, index.nprobe)


def ranked(
    values_QF: NDArray[np.float32],
    places_QF: NDArray[np.int64],
    hidden: Sequence[Collection[int]],
) -> list[Ranked]:
    """Return places and rounded values of each query, best first, without what it may not see."""
    import numpy as np

    values_QF = values_QF.astype("float64").round(_DECIMALS)
    for row, places in enumerate(hidden):
        if places:
            values_QF[row, np.isin(places_QF[row], list(places))] = -np.inf
    order_QF = np.lexsort((places_QF, -values_QF), axis=1)
    values_QF = np.take_along_axis(values_QF, order_QF, axis=1)
    places_QF = np.take_along_axis(places_QF, order_QF, axis=1)
    counts = np.isfinite(values_QF).sum(axis=1).tolist()
    return [
        (places_QF[row, :count].tolist(), values_QF[row, :count].tolist())
        for row, count in enumerate(counts)
    ]


def merged(found: Sequence[Ranked], k: int) -> Ranked:
    """Return the k best of what several tasks gave for one query."""
    best = sorted(
        (-value, place)
        for places, values in found
        for place, value in zip(places, values, strict=True)
    )[:k]
    return [place for _, place in best], [-negated for negated, _ in best]
