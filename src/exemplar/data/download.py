"""From a source to a data folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exemplar.data import sources
from exemplar.data.dataset import open_dataset
from exemplar.data.release.fill import fill as fill_from_release
from exemplar.tasks import spec

_RULES = ("max_pool", "max_train", "max_test", "drop_test_queries", "allowed_leaks")


def fill(data: Path, settings: Mapping[str, Any], *, seed: int, cache: Path) -> dict[str, int]:
    """Write the data folder `data`, whole or not at all; return counts.

    `settings`: those of the section `download_data` (`settings.py`). All but the path are kept in
    the manifest. `cache`: where files of remote sources are kept. Raises `DataError` and
    `TaskError` where the source cannot be read, a row does not fit, or training rows ask what the
    test asks and neither rule lets them.
    """
    told = {name: value for name, value in settings.items() if name != "path"}
    if settings["source"] == "released":
        used = ("path", "tasks", "scores", "max_train", "max_test")
        chosen = {name: settings[name] for name in used}
        return fill_from_release(data, **chosen, seed=seed, settings=told)
    source, path = sources.at_hand(settings["source"], settings["path"], cache)
    own_tasks = sources.own_tasks(source, path)
    catalog = spec.load_catalog(own_tasks)
    names = settings["tasks"] or sources.available(source, path, catalog)
    if settings["allowed_leaks"]:
        spec.select(catalog, settings["allowed_leaks"])  # raises where no task has that name
    with open_dataset(data, source=settings["source"], own_tasks=own_tasks) as writer:
        counts = sources.stream(
            source,
            writer.keep,
            path=path,
            specs=[task.worded(settings["wording"]) for task in spec.select(catalog, names)],
            seed=seed,
            progress="reading",
            **{name: settings[name] for name in _RULES},
        )
        writer.manifest = {
            "source": settings["source"],
            "tasks": list(names),
            "settings": told,
            "seed": seed,
            "counts": counts,
        }
    return {"tasks": len(names), **sources.totals(counts)}
