"""From the released files to a data folder, with the authors' candidates and rewards in it.

    data/pool.parquet, train.parquet, test.parquet    as from any source, ids being passages' places
    data/tasks.yaml                                   the tasks, with the labels that the data has
    data/released/r1/candidates.parquet               bm25_train
    data/released/r1/rewards.parquet, r2/...          kd_bm25_train, kd_it2_train
    data/released/train.parquet, test.parquet         all queries, also held-out and undrawn ones
    data/released/kept.json                           lines that no record holds

The manifest's `released` holds what else it takes to write the files back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from exemplar.data.dataset import OWN_TASKS, write_dataset
from exemplar.data.digests import DigestSet
from exemplar.data.io import write_json, write_records, write_text
from exemplar.data.release.fetch import fetch
from exemplar.data.release.read import Release
from exemplar.data.splits import Numbered, draw
from exemplar.errors import TaskError
from exemplar.records import Candidates, Example, Rewards
from exemplar.retrieval.ranking import normalise
from exemplar.tasks.spec import TaskSpec, load_catalog, select

FOLDER, KEPT = "released", "kept.json"
RECORDS: dict[str, tuple[type[Any], str]] = {
    "bm25_train": (Candidates, "r1/candidates.parquet"),
    "kd_bm25_train": (Rewards, "r1/rewards.parquet"),
    "kd_it2_train": (Rewards, "r2/rewards.parquet"),
}
"""What the scored files become, below `FOLDER`."""


def fill(
    data: Path,
    *,
    path: str | None,
    tasks: Sequence[str] | None,
    scores: bool,
    max_train: int | None,
    max_test: int | None,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, int]:
    """Write the data folder `data` from a release; return counts.

    `path`: see `fetch`. `tasks`: which to take, None for all; the rows that fill another task's
    pool come along. Passages are streamed. `max_train` and `max_test` draw queries of a task by
    seed; held-out tasks give no training query. Raises `DataError` where the files contradict each
    other, `TaskError` on a task that the catalogue does not know.
    """
    files, commit = fetch(path, scores=scores)
    own = files["passages"].with_name(OWN_TASKS)
    catalog = load_catalog(own if own.is_file() else None)
    wanted = None if tasks is None else _with_homes(tasks, catalog)
    release = Release(files, wanted, progress=True)
    specs = _specs(release, catalog)
    if missing := sorted((wanted or set()) - specs.keys()):
        raise TaskError(
            f"the release has no task {missing[0]!r}; it has {', '.join(release.numbering.starts)} "
            "and, as tests alone, tasks that share their passages."
        )
    labels = _labels(release, specs)
    held_out = {name for name, spec in specs.items() if spec.held_out}
    teachers = [one for one in release.train if one.example.task not in held_out]
    train, test = (
        _drawn(teachers, max_train, seed, "train"),
        _drawn(release.test, max_test, seed, "test"),
    )
    counts: dict[str, dict[str, Any]] = {name: {} for name in specs}
    manifest: dict[str, Any] = {
        "source": "released",
        "tasks": list(specs),
        "settings": dict(settings),
        "seed": seed,
        "counts": counts,
    }

    def also(folder: Path, fingerprint: str) -> None:
        _write_scores(release, files, folder / FOLDER, fingerprint)
        write_text(folder / OWN_TASKS, _entries(specs, labels))
        for split, queries in (("train", train), ("test", test)):
            found = Counter(query.task for query in queries)
            for name, of_task in counts.items():
                of_task[split] = found[name]
        for name, of_task in counts.items():
            of_task["pool"] = release.pool_counts[name]
        manifest["released"] = {
            "commit": commit,
            "whole": release.whole,
            "kept": len(release.kept),
            "starts": release.numbering.starts,
            "files": release.described(),
        }

    pool = _counting_leaks(release.pool(), release.test, counts)
    write_dataset(data, pool=pool, train=train, test=test, manifest=manifest, also=also)
    passages = release.pool_counts.total()
    return {"tasks": len(specs), "pool": passages, "train": len(train), "test": len(test)}


def _counting_leaks(
    pool: Iterable[Example], test: Iterable[Numbered], counts: Mapping[str, dict[str, Any]]
) -> Iterator[Example]:
    """Pass the pool on, counting by task what asks a test query: a release is taken as it is."""
    asked = DigestSet()
    for query in test:
        asked.add(normalise(query.example.query))
    for of_task in counts.values():
        of_task["kept_in_test"] = 0
    for example in pool:
        counts[example.task]["kept_in_test"] += normalise(example.query) in asked
        yield example


def _write_scores(
    release: Release, files: Mapping[str, Path], folder: Path, fingerprint: str
) -> None:
    sealed = {"data": fingerprint}
    for split, queries in (("train", release.train), ("test", release.test)):
        examples = (one.example for one in queries)
        write_records(folder / f"{split}.parquet", Example, examples, made_from=sealed)
    for name in filter(files.__contains__, RECORDS):
        kind, path = RECORDS[name]
        write_records(folder / path, kind, release.records(name, kind), made_from=sealed)
    write_json(folder / KEPT, [asdict(kept) for kept in release.kept])


def _with_homes(names: Sequence[str], catalog: Mapping[str, TaskSpec]) -> frozenset[str]:
    """Return the named tasks and those whose rows fill their pools."""
    homes = {spec.train_from for spec in catalog.values() if spec.train_from}
    known = select(catalog, [name for name in names if name not in homes - catalog.keys()])
    return frozenset(names) | {spec.train_from for spec in known if spec.train_from}


def _specs(release: Release, catalog: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
    """Return the task of every passage and test query, in the order in which they first stand."""
    numbered = [*release.train, *release.test]
    present = dict.fromkeys(
        [*release.numbering.starts, *(one.example.task for one in release.test)]
    )
    read = {name for name in present if release.reads(name)}
    multiple = {one.example.task for one in numbered if one.example.choices}
    asked = {one.example.task for one in numbered}
    specs = {}
    for name in filter(read.__contains__, present):
        used_by = [spec for spec in catalog.values() if spec.train_from == name]
        spec = catalog.get(name) or next(iter(used_by), None)
        if spec is None:
            raise TaskError(
                f"the release has a task {name!r} that the catalogue does not know. Give it an "
                f"entry (category, kind, metric, labels) in a {OWN_TASKS} beside the files, or "
                "name the tasks to take."
            )
        if name in asked and (spec.kind == "multiple_choice") != (name in multiple):
            raise TaskError(
                f"task {name!r} is {spec.kind} in the catalogue; the release says otherwise, its "
                f"queries have {'several' if name in multiple else 'no'} options."
            )
        specs[name] = spec
    return specs


def _labels(release: Release, specs: Mapping[str, TaskSpec]) -> dict[str, list[str]]:
    """Return the labels of each classification task, as they stand in the data."""
    answers: dict[str, set[str]] = defaultdict(set)
    for one in (*release.train, *release.test):
        answers[one.example.task].add(one.example.answer)
    return {
        name: sorted(answers[name] | answers[spec.train_from])
        for name, spec in specs.items()
        if spec.kind == "classification"
    }


def _entries(specs: Mapping[str, TaskSpec], labels: Mapping[str, Collection[str]]) -> str:
    """Return tasks.yaml: what the catalogue says of the tasks, with labels from the data."""
    entries: dict[str, dict[str, Any]] = {}
    for name, spec in specs.items():
        entry = {
            "category": spec.category,
            "kind": spec.kind,
            "metric": spec.metric,
            "held_out": spec.held_out,
        }
        if spec.description:
            entry["description"] = spec.description
        if name in labels:
            entry["labels"] = list(labels[name])
        if spec.train_from in specs and spec.train_from != name:
            entry["train_from"] = spec.train_from
        entries[name] = entry
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def _drawn(queries: Sequence[Numbered], limit: int | None, seed: int, split: str) -> list[Example]:
    """Return at most `limit` queries a task, drawn by seed, in the order of the file."""
    of_task: dict[str, list[Numbered]] = defaultdict(list)
    for one in queries:
        of_task[one.example.task].append(one)
    drawn = [one for name, some in of_task.items() for one in draw(some, limit, seed, split, name)]
    return [one.example for one in sorted(drawn, key=lambda one: one.row)]
