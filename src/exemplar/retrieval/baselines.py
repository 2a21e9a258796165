"""Demonstrations without a retriever: at random, and the same few for a whole task.

Both are baselines of the paper (section 4.1). Their similarities say nothing of the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exemplar.records import Candidates, Example
from exemplar.retrieval.members import Members
from exemplar.retrieval.ranking import by_task, require_candidates, require_pool
from exemplar.seeding import derive_seed, rng

if TYPE_CHECKING:
    from exemplar.retrieval.pool_index import TextEncoder

_NUM_RESTARTS = 4
_MOST_CLUSTERED = 50_000


def random_candidates(
    queries: Sequence[Example], pool: Sequence[Example], *, k: int, seed: int
) -> list[Candidates]:
    """Return k examples of the query's task at random, drawn anew for each query.

    The draw depends on the seed and the query's id alone. All similarities are 0. Exclusions and
    errors are those of `bm25_candidates`.
    """
    pools = by_task(pool)
    members: dict[str, Members] = {}
    results = []
    for query in queries:
        require_pool(query.task, pools)
        if query.task not in members:
            members[query.task] = Members(pools[query.task])
        candidates = members[query.task]
        excluded = candidates.excluded(query)
        num_drawn = min(k + len(excluded), len(candidates))
        drawn = rng(seed, "random", query.example_id).sample(range(len(candidates)), num_drawn)
        kept = [candidates.names[at] for at in drawn if at not in excluded][:k]
        require_candidates(query, len(kept))
        results.append(Candidates(query.example_id, tuple(kept), (0.0,) * len(kept)))
    return results


def kmeans_candidates(
    queries: Sequence[Example],
    pool: Sequence[Example],
    encoder: TextEncoder,
    *,
    k: int,
    seed: int,
    progress: str | None = None,
) -> list[Candidates]:
    """Return the same k examples for every query of a task: those nearest to k cluster centres.

    Each similarity is the example's cosine with its own centre, highest first. A query never sees
    itself nor its own text, and gets fewer then. Errors are those of `bm25_candidates`.
    """
    pools = by_task(pool)
    chosen: dict[str, list[tuple[Example, float]]] = {}
    for task in by_task(queries):
        require_pool(task, pools)
        description = progress and f"{progress}: {task}"
        chosen[task] = _central(pools[task], encoder, k, seed, description)
    shown = {task: Members(example for example, _ in found) for task, found in chosen.items()}
    results = []
    for query in queries:
        excluded = shown[query.task].excluded(query)
        kept = [member for at, member in enumerate(chosen[query.task]) if at not in excluded]
        require_candidates(query, len(kept))
        results.append(
            Candidates(
                query.example_id,
                tuple(example.example_id for example, _ in kept),
                tuple(similarity for _, similarity in kept),
            )
        )
    return results


def _central(
    examples: Sequence[Example], encoder: TextEncoder, k: int, seed: int, progress: str | None
) -> list[tuple[Example, float]]:
    """Return the examples nearest to the centres of k clusters, with their cosines."""
    import numpy as np
    from sklearn.cluster import KMeans

    task = examples[0].task
    if len(examples) > _MOST_CLUSTERED:  # more change the centres little and cost hours
        places = rng(seed, "kmeans_sample", task).sample(range(len(examples)), _MOST_CLUSTERED)
        wanted = set(places)
        drawn = {at: example for at, example in enumerate(examples) if at in wanted}
        examples = [drawn[at] for at in places]
    else:
        examples = list(examples)
    embeddings_PD = encoder.encode([example.text for example in examples], progress=progress)
    num_clusters = min(k, len(np.unique(embeddings_PD, axis=0)))
    clusters = KMeans(
        n_clusters=num_clusters,
        n_init=_NUM_RESTARTS,
        random_state=derive_seed(seed, "kmeans", task) % 2**32,
    ).fit(embeddings_PD)
    centres_KD = clusters.cluster_centers_
    nearest: list[tuple[Example, float]] = []
    for cluster, centre_D in enumerate(centres_KD):
        members = np.flatnonzero(clusters.labels_ == cluster)
        cosines = embeddings_PD[members] @ (centre_D / max(np.linalg.norm(centre_D), 1e-12))
        best = int(np.argmax(np.round(cosines, 6)))
        nearest.append((examples[int(members[best])], round(float(cosines[best]), 6)))
    return sorted(nearest, key=lambda member: (-member[1], member[0].example_id))
