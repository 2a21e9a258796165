"""Retrievers in the MLflow registry: versions, the aliases that point at them, and their reports.

    challenger   the last version registered that has not become champion
    champion     the version that answers queries
    previous     the champion before it, where rollback returns to

A version is complete before it exists: its files are uploaded first, its tags come with it. Aliases
move in one order, `champion` last, under an intention written down beforehand: a move that is
killed leaves `champion` on a whole version, the old one or the new, and the next `promote` or
`rollback` first finishes it. MLflow has no locks: let one process at a time move aliases.
"""

from __future__ import annotations

import datetime
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar import serving
from exemplar.data.io import fingerprint, read_json, read_records
from exemplar.errors import RegistryError
from exemplar.records import Outcome
from exemplar.tracking import FINGERPRINT, Store, clean_name, digest_of, explained

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

_MOVING = "exemplar.moving"  # tag of the registered model: the move that is under way
_ROUND, _AVERAGE, _GATE = "exemplar.round", "eval/average", "exemplar.gate"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")


@dataclass(frozen=True)
class VersionRecord:
    """A registered version. `fingerprints`: of the files that it was judged on, "test", "pool"."""

    version: str
    round: int
    aliases: tuple[str, ...]
    average: float | None
    gate: str
    run_id: str
    created: str
    fingerprints: Mapping[str, str]


@dataclass(frozen=True)
class Champion:
    """The champion with its frozen outcomes, one a test example, to compare a challenger with."""

    record: VersionRecord
    outcomes: list[Outcome]


def register(
    store: Store,
    name: str,
    *,
    run_id: str,
    round: int,
    retriever: Path,
    pool: Path,
    outcomes: Path,
    metrics: Path,
    entry_script: Path,
    fingerprints: Mapping[str, str],
    tags: Mapping[str, str] | None = None,
    progress: str | None = None,
) -> str:
    """Register a round's retriever as a new version, make it challenger, return the version.

    The version holds the encoder, the embedded pool, `outcomes` and `metrics`, and answers queries
    through `entry_script` (mlflow/served_model.py). The same files registered again give the
    version that exists; that becomes challenger again unless it is, or was, champion. Raises
    `DataError` where a file is missing and `RegistryError` where MLflow refuses.
    """
    digest = digest_of([round, *map(fingerprint, (retriever, pool, outcomes, metrics))])
    with explained(f"registering {name!r} in {store.uri}"):
        for version in _versions(store, name):
            if version.tags.get(FINGERPRINT) == digest:
                if not {CHAMPION, PREVIOUS} & set(_aliases_of(store, name, version.version)):
                    store.client.set_registered_model_alias(name, CHALLENGER, version.version)
                return str(version.version)
        with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
            bundle = Path(temporary) / "bundle"
            serving.write_bundle(
                bundle,
                retriever=retriever,
                pool=pool,
                evaluation=[outcomes, metrics],
                progress=progress,
            )
            model_id = _upload(store, run_id, round, bundle, entry_script, Path(temporary))
        _ensure_model(store, name)
        own = {FINGERPRINT: digest, _ROUND: str(round), "exemplar.run": run_id}
        own |= {f"exemplar.fingerprint.{key}": value for key, value in fingerprints.items()}
        average = read_json(metrics).get("average")
        if isinstance(average, int | float):
            own[_AVERAGE] = f"{average:.4f}"
        created = store.client.create_model_version(
            name,
            source=store.client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            model_id=model_id,
            tags={**(tags or {}), **own},
        )
        store.client.set_registered_model_alias(name, CHALLENGER, created.version)
    return str(created.version)


def champion(store: Store, name: str) -> Champion | None:
    """Return the champion with its outcomes, or None while there is none."""
    with explained(f"reading the champion of {name!r} from {store.uri}"):
        version = _aliases(store, name).get(CHAMPION)
    if version is None:
        return None
    record = next(item for item in list_versions(store, name) if item.version == version)
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        path = _download(store, name, version, serving.OUTCOMES, Path(temporary))
        return Champion(record, read_records(path, Outcome))


def promote(store: Store, name: str, version: str) -> None:
    """Make `version` the champion and keep the old champion as `previous`.

    Repeating it changes nothing. Raises `RegistryError` for a version that does not exist.
    """
    with explained(f"promoting version {version} of {name!r} in {store.uri}"):
        known = [str(item.version) for item in _versions(store, name)]
        if version not in known:
            raise RegistryError(
                f"Model {name!r} has no version {version!r}; it has {', '.join(known) or 'none'}. "
                "Register it first, or name one of those."
            )
        _finish_move(store, name)
        aliases = _aliases(store, name)
        old = aliases.get(CHAMPION)
        if old == version:
            return
        moves: dict[str, str | None] = {} if old is None else {PREVIOUS: old}
        if aliases.get(CHALLENGER) == version:
            moves[CHALLENGER] = None
        _move(store, name, "promote", {**moves, CHAMPION: version})


def rollback(store: Store, name: str) -> str:
    """Return to the previous champion; give its version.

    The two change places, so a second rollback undoes the first. A rollback that was killed is
    finished rather than repeated. Raises `RegistryError` where there is nothing to return to.
    """
    with explained(f"rolling {name!r} back in {store.uri}"):
        if _finish_move(store, name) != "rollback":
            aliases = _aliases(store, name)
            current, target = aliases.get(CHAMPION), aliases.get(PREVIOUS)
            if current is None or target is None:
                raise RegistryError(
                    f"Model {name!r} has no {CHAMPION if current is None else PREVIOUS!r} alias, "
                    "so there is nothing to roll back: the first rollback needs two promotions. "
                    f"Aliases now: {_listed(aliases)}."
                )
            _move(store, name, "rollback", {PREVIOUS: current, CHAMPION: target})
        return _aliases(store, name)[CHAMPION]


def list_versions(store: Store, name: str) -> list[VersionRecord]:
    """Return every version of the model, the newest first; none where it is not registered."""
    with explained(f"listing the versions of {name!r} in {store.uri}"):
        aliases = _aliases(store, name)
        return [_record(version, aliases) for version in _versions(store, name)]


def store_gate_report(
    store: Store, name: str, version: str, decision: Mapping[str, Any], markdown: str
) -> None:
    """Keep the gate's decision with a version.

    All of it goes beside the run's files (gate/), the text into the version's description, and the
    verdict and each single figure into tags, for the table and for searching.
    """
    with explained(f"storing the gate's report on version {version} of {name!r}"):
        run_id = store.client.get_model_version(name, version).run_id
        store.client.log_dict(run_id, dict(decision), _report_path(name, version, "json"))
        store.client.log_text(run_id, markdown, _report_path(name, version, "md"))
        store.client.update_model_version(name, version, description=markdown)
        for key, value in decision.items():
            if isinstance(value, str | int | float):
                tag = clean_name(f"gate.{key}")
                store.client.set_model_version_tag(name, version, tag, str(value))
        verdict = "promoted" if decision["promoted"] else "refused"
        store.client.set_model_version_tag(name, version, _GATE, verdict)  # last: it is all there


def read_gate_report(store: Store, name: str, version: str) -> dict[str, Any] | None:
    """Return the decision that `store_gate_report` kept for a version, None where there is none."""
    from mlflow.artifacts import download_artifacts

    with explained(f"reading the gate's report on version {version} of {name!r}"):
        stored = store.client.get_model_version(name, version)
        if _GATE not in stored.tags:
            return None
        with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
            path = download_artifacts(
                run_id=stored.run_id,
                artifact_path=_report_path(name, version, "json"),
                dst_path=temporary,
                tracking_uri=store.uri,
            )
            report: dict[str, Any] = read_json(Path(path))
            return report


def fetch(store: Store, reference: str, into: Path) -> Path:
    """Download what models:/<name>@<alias> or models:/<name>/<version> names; return its folder.

    Raises `RegistryError` that says which names, versions or aliases there are instead.
    """
    name, version = resolve(store, reference)
    return _download(store, name, version, "", into)


def resolve(store: Store, reference: str) -> tuple[str, str]:
    """Return the model's name and the version that a models:/ reference names."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise RegistryError(
            f"{reference!r} is no model reference; expected models:/<name>@<alias> or "
            "models:/<name>/<version>, for example models:/exemplar-retriever@champion."
        )
    name, alias, version = match["name"], match["alias"], match["version"]
    with explained(f"looking up {reference} in {store.uri}"):
        versions = [str(item.version) for item in _versions(store, name)]
        if not versions:
            registered = [model.name for model in store.client.search_registered_models()]
            raise RegistryError(
                f"{reference}: no model {name!r} is registered at {store.uri}; there are: "
                f"{', '.join(registered) or 'none'}. Run the promotion step first (`dvc repro`)."
            )
        aliases = _aliases(store, name)
    found = aliases.get(alias) if alias else version
    if found not in versions:
        raise RegistryError(
            f"{reference}: model {name!r} has no {'alias' if alias else 'version'} "
            f"{alias or version!r}. Aliases: {_listed(aliases)}; versions: {', '.join(versions)}."
        )
    return name, found


def _upload(
    store: Store, run_id: str, round: int, bundle: Path, entry_script: Path, temporary: Path
) -> str:
    """Save the model as MLflow's format wants it, upload it, link it to its run; return its id."""
    from mlflow.entities import LoggedModelOutput, Metric

    run = store.client.get_run(run_id)
    model = store.client.create_logged_model(
        store.experiment_id,
        name=f"round-{round}",
        source_run_id=run_id,
        params=run.data.params,
        model_type="retriever",
    )
    status = "FAILED"
    try:
        folder = temporary / "model"
        serving.save_pyfunc(folder, bundle, entry_script, model_id=model.model_id, run_id=run_id)
        store.client.log_model_artifacts(model.model_id, str(folder))
        status = "READY"
    finally:
        store.client.finalize_logged_model(model.model_id, status)
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=round)])
    figures = [
        store.client.get_metric_history(run_id, key)[-1]
        for key in run.data.metrics
        if key.startswith("eval/")
    ]
    linked = [
        Metric(item.key, item.value, item.timestamp, item.step, model_id=model.model_id)
        for item in figures
    ]
    store.client.log_batch(run_id, metrics=linked[:1000])
    return str(model.model_id)


def _ensure_model(store: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(
            name, description="Picks the examples that a language model answers best after."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _move(store: Store, name: str, action: str, aliases: Mapping[str, str | None]) -> None:
    intention = json.dumps({"action": action, "aliases": aliases})
    store.client.set_registered_model_tag(name, _MOVING, intention)
    _finish_move(store, name)


def _finish_move(store: Store, name: str) -> str | None:
    """Carry out the move that is written down, in its order; return its action, if there is one."""
    text = _model(store, name).tags.get(_MOVING) if _versions(store, name) else None
    if text is None:
        return None
    move = json.loads(text)
    for alias, version in move["aliases"].items():
        if version is None:
            store.client.delete_registered_model_alias(name, alias)
        else:
            store.client.set_registered_model_alias(name, alias, version)
    store.client.delete_registered_model_tag(name, _MOVING)
    return str(move["action"])


def _model(store: Store, name: str) -> RegisteredModel:
    return store.client.get_registered_model(name)


def _versions(store: Store, name: str) -> list[ModelVersion]:
    """Return the model's versions, the newest first; none where there is no such model."""
    found = store.client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return sorted(found, key=lambda version: -int(version.version))


def _aliases(store: Store, name: str) -> dict[str, str]:
    # search_model_versions leaves aliases out; only the model itself knows them.
    if not _versions(store, name):
        return {}
    return {alias: str(version) for alias, version in _model(store, name).aliases.items()}


def _aliases_of(store: Store, name: str, version: object) -> list[str]:
    return [alias for alias, at in _aliases(store, name).items() if at == str(version)]


def _listed(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} -> {aliases[alias]}" for alias in sorted(aliases)) or "none"


def _record(version: ModelVersion, aliases: Mapping[str, str]) -> VersionRecord:
    prefix = "exemplar.fingerprint."
    created = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    average = version.tags.get(_AVERAGE)
    return VersionRecord(
        version=str(version.version),
        round=int(version.tags.get(_ROUND, 0)),
        aliases=tuple(sorted(a for a, at in aliases.items() if at == str(version.version))),
        average=None if average is None else float(average),
        gate=version.tags.get(_GATE, ""),
        run_id=version.run_id or "",
        created=created.isoformat(timespec="seconds"),
        fingerprints={
            key.removeprefix(prefix): value
            for key, value in version.tags.items()
            if key.startswith(prefix)
        },
    )


def _report_path(name: str, version: str, suffix: str) -> str:
    return f"gate/{name}-v{version}.{suffix}"


def _download(store: Store, name: str, version: str, path: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    with explained(f"downloading {path or 'the model'} of version {version} of {name!r}"):
        found = download_artifacts(
            artifact_uri=f"models:/{name}/{version}{f'/{path}' if path else ''}",
            dst_path=str(into),
            tracking_uri=store.uri,
            registry_uri=store.uri,
        )
    return Path(found)
