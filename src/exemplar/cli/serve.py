"""The command that serves a retriever over HTTP."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from exemplar.cli.use import DEFAULT_MODEL, ModelOption
from exemplar.errors import ConfigError

serve_app = typer.Typer()

_EXAMPLES = """Examples:
exemplar serve |
exemplar serve --port 9000 --poll-seconds 60 |
exemplar serve --model models:/exemplar-retriever/3 |
exemplar serve --model rounds/bundle --host 0.0.0.0 --max-k 16 |
curl localhost:8000/v1/select -H 'Content-Type: application/json'
-d '{"query": "The kettle came with a cracked lid.", "k": 4}'"""


@serve_app.command("serve", epilog=_EXAMPLES)
def serve(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of the machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, help="How often to look whether the alias has moved.")
    ] = 10.0,
    max_k: Annotated[int, typer.Option(min=1, help="Most demonstrations a query.")] = 100,
    max_queries: Annotated[int, typer.Option(min=1, help="Most queries a request.")] = 64,
    max_query_chars: Annotated[int, typer.Option(min=1, help="Longest query.")] = 20_000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 1_048_576,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Queries of concurrent requests that are answered together.")
    ] = 32,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Processor threads. Default: the libraries' choice."),
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = True,
) -> None:
    """Serve a retriever over HTTP; a model that becomes champion takes over without a restart."""
    missing = [name for name in ("fastapi", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"serve needs {' and '.join(missing)}; install it with `pip install 'exemplar[serve]'`."
        )
    from exemplar.serving.server.app import Limits
    from exemplar.serving.server.live import source_of
    from exemplar.serving.server.run import run
    from exemplar.tracking.store import open_store

    registered = model.startswith("models:/")
    store = open_store(context.obj.layout.root, create=False) if registered else None
    run(
        source_of(model, store),
        host=host,
        port=port,
        limits=Limits(max_k, max_queries, max_query_chars, max_body_bytes),
        batch_size=batch_size,
        threads=threads,
        poll_seconds=poll_seconds,
        access_log=access_log,
    )
