"""Which registered version is in use: the aliases, promotion and rollback.

    challenger   the last version registered that has not become champion
    champion     the version that answers queries
    previous     the champion before it, where rollback returns to

A move of aliases is first written down as a tag of the registered model, then carried out in one
order, `champion` last. Killed anywhere, it leaves `champion` on a whole version, the old one or
the new, and the next move finishes it first. Moves happen one at a time (`lock.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from exemplar.errors import RegistryError
from exemplar.registry.lock import LEASE_S, Lock, held
from exemplar.tracking.store import Store, explained

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

_MOVING = "exemplar.moving"  # tag: the move that is under way
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")


def promote(
    store: Store,
    name: str,
    version: str,
    *,
    instead_of: str | None = None,
    lease_s: float = LEASE_S,
) -> bool:
    """Make `version` the champion, keep the old champion as `previous`, and return True.

    `instead_of`: the champion that it was compared with ("" for none). Where another one is
    champion by now nothing is moved and False is returned. None replaces any. Repeating it changes
    nothing. Raises `RegistryError` for a version that does not exist.
    """
    with explained(f"promoting version {version} of {name!r} in {store.place}"):
        known = _versions(store, name)
        if version not in known:
            raise RegistryError(
                f"Model {name!r} has no version {version!r}; it has {', '.join(known) or 'none'}. "
                "Register it first, or name one of those."
            )
        with held(store, name, lease_s=lease_s) as lock:
            _finish(store, name, lock)
            aliases = aliases_of(store, name)
            old = aliases.get(CHAMPION)
            if old == version:
                return True
            if instead_of is not None and (old or "") != instead_of:
                return False
            moves: dict[str, str | None] = {} if old is None else {PREVIOUS: old}
            if aliases.get(CHALLENGER) == version:
                moves[CHALLENGER] = None
            _move(store, name, lock, "promote", {**moves, CHAMPION: version})
            return True


def rollback(store: Store, name: str, *, lease_s: float = LEASE_S) -> str:
    """Return to the previous champion and give its version.

    The two change places, so a second rollback undoes the first. A rollback that was killed is
    finished rather than repeated. Raises `RegistryError` where there is nothing to return to.
    """
    with explained(f"rolling {name!r} back in {store.place}"):
        _require_previous(name, store.place, aliases_of(store, name))
        with held(store, name, lease_s=lease_s) as lock:
            finished = _finish(store, name, lock)
            aliases = aliases_of(store, name)
            current, target = aliases.get(CHAMPION), aliases.get(PREVIOUS)
            if finished != "rollback" and current is not None and target is not None:
                _move(store, name, lock, "rollback", {PREVIOUS: current, CHAMPION: target})
        after = aliases_of(store, name)
        _require_previous(name, store.place, after)
        return after[CHAMPION]


def challenge(store: Store, name: str, version: str, *, lease_s: float = LEASE_S) -> None:
    """Make `version` the challenger, unless it is champion or previous already."""
    with (
        explained(f"making version {version} of {name!r} challenger in {store.place}"),
        held(store, name, lease_s=lease_s) as lock,
    ):
        _finish(store, name, lock)
        aliases = aliases_of(store, name)
        if version not in (aliases.get(CHAMPION), aliases.get(PREVIOUS)):
            lock.check()
            store.client.set_registered_model_alias(name, CHALLENGER, version)


def aliases_of(store: Store, name: str) -> dict[str, str]:
    """Return the aliases with their versions; none where the model is not registered."""
    model = _model(store, name)
    return {} if model is None else {alias: str(at) for alias, at in model.aliases.items()}


def parse(reference: str) -> tuple[str, str | None, str | None]:
    """Return the name in a models:/ reference, with its alias or else its version."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise RegistryError(
            f"{reference!r} is no model reference; expected models:/<name>@<alias> or "
            "models:/<name>/<version>, for example models:/exemplar-retriever@champion."
        )
    return match["name"], match["alias"], match["version"]


def resolve(store: Store, reference: str) -> tuple[str, str]:
    """Return the model's name and the version that a models:/ reference names."""
    name, alias, version = parse(reference)
    with explained(f"looking up {reference} in {store.place}"):
        versions = _versions(store, name)
        if not versions:
            registered = [model.name for model in store.client.search_registered_models()]
            raise RegistryError(
                f"{reference}: no model {name!r} is registered at {store.place}; there are: "
                f"{', '.join(registered) or 'none'}. Run the promotion step first (`dvc repro`)."
            )
        aliases = aliases_of(store, name)
    found = aliases.get(alias) if alias else version
    if found not in versions:
        raise RegistryError(
            f"{reference}: model {name!r} has no {'alias' if alias else 'version'} "
            f"{alias or version!r}. Aliases: {_listed(aliases)}; versions: {', '.join(versions)}."
        )
    return name, found


def _versions(store: Store, name: str) -> list[str]:
    found = store.client.search_model_versions(_named(name), max_results=10_000)
    return [str(item.version) for item in found]


def _require_previous(name: str, uri: str, aliases: Mapping[str, str]) -> None:
    if not {CHAMPION, PREVIOUS} <= aliases.keys():
        raise RegistryError(
            f"Model {name!r} has nothing to roll back to: that takes a champion and a previous "
            f"one, so two promotions. Its aliases at {uri}: {_listed(aliases)}."
        )


def _move(
    store: Store, name: str, lock: Lock, action: str, aliases: Mapping[str, str | None]
) -> None:
    intention = json.dumps({"action": action, "aliases": aliases})
    lock.check()
    store.client.set_registered_model_tag(name, _MOVING, intention)
    _finish(store, name, lock)


def _finish(store: Store, name: str, lock: Lock) -> str | None:
    """Carry out the move that is written down, in its order; return its action, if there is one."""
    model = _model(store, name)
    if model is None or _MOVING not in model.tags:
        return None
    move = json.loads(model.tags[_MOVING])
    for alias, version in move["aliases"].items():
        lock.check()
        if version is not None:
            store.client.set_registered_model_alias(name, alias, version)
        elif alias in model.aliases:
            store.client.delete_registered_model_alias(name, alias)
    lock.check()
    store.client.delete_registered_model_tag(name, _MOVING)
    return str(move["action"])


def _model(store: Store, name: str) -> RegisteredModel | None:
    found = store.client.search_registered_models(_named(name))
    return found[0] if found else None


def _listed(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} -> {aliases[alias]}" for alias in sorted(aliases)) or "none"


def _named(name: str) -> str:
    return f"name = '{name}'"
