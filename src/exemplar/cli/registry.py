"""The registry for people: what is registered, which version is in use, and changing that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from exemplar.errors import RegistryError

if TYPE_CHECKING:
    from exemplar.layout import Workspace
    from exemplar.tracking.store import Store

registry_app = typer.Typer()


@registry_app.command("registry", epilog="Examples: exemplar registry | exemplar registry 2")
def registry(
    context: typer.Context,
    version: Annotated[
        str | None, typer.Argument(help="Print this version's description and gate report.")
    ] = None,
) -> None:
    """List the registered versions, their aliases and gate results, or show one of them."""
    from exemplar import summary
    from exemplar.registry import story

    store, name = _open(context)
    if version is None:
        summary.print_registry(store, name)
        return
    typer.echo(story.describe(store, name, version).rstrip())


@registry_app.command(
    "promote", epilog="Examples: exemplar promote 1 | exemplar promote 2 --anyway"
)
def promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The version that shall answer queries.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Even if the gate has refused it, or never saw it.")
    ] = False,
) -> None:
    """Make a version champion by hand; the champion before it becomes previous.

    The gate does this by itself (`exemplar promotion`). By hand it takes a version that the gate
    has let through, or --anyway; the version keeps a note of it.
    """
    from exemplar.registry import aliases, story, versions

    store, name = _open(context)
    verdict = versions.record(store, name, version).gate
    if verdict != "promoted" and not anyway:
        found = story.read_gate_report(store, name, version) or {}
        said = found.get("headline", "The gate has not judged it.")
        raise RegistryError(
            f"Version {version} of {name!r} has not passed the gate. {said} `exemplar registry "
            f"{version}` shows all of it; `exemplar promote {version} --anyway` promotes it all "
            "the same."
        )
    aliases.promote(store, name, version)
    story.note_promotion_by_hand(store, name, version)
    typer.echo(f"{name}: champion is version {version} now.")


@registry_app.command("rollback", epilog="Example: exemplar rollback")
def rollback(context: typer.Context) -> None:
    """Make the previous champion champion again."""
    from exemplar.registry import aliases

    store, name = _open(context)
    version = aliases.rollback(store, name)
    typer.echo(f"{name}: champion is version {version} again.")


def _open(context: typer.Context) -> tuple[Store, str]:
    """Return the store that exists, and the name of the model in the settings."""
    from exemplar.tracking.store import open_store

    space: Workspace = context.obj
    settings = space.params.active.promotion
    store = open_store(space.layout.root, settings.experiment, create=False)
    return store, settings.registered_model
