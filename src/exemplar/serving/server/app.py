"""The routes: select, health, readiness, and what model answers."""

# No `from __future__ import annotations`: FastAPI reads the request's class, which is made here.
import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Discriminator, Field, Tag

import exemplar
from exemplar.serving import wire
from exemplar.serving.server.batching import Batcher
from exemplar.serving.server.live import LiveModel, Loaded, watch
from exemplar.serving.server.logs import event
from exemplar.serving.server.middleware import AccessLog, BodyLimit
from exemplar.serving.server.problems import NotReadyError, Problem, add_handlers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    max_k: int = 100
    max_queries: int = 64
    max_query_chars: int = 20_000
    max_body_bytes: int = 1_048_576


class Answer(wire.SelectAnswer):
    """The demonstrations for one query, and the version of the model that chose them."""

    version: str | None = Field(None, description="Null for a model from a folder.")


class Readiness(BaseModel):
    """Whether queries are answered, by which version, and why the last update failed."""

    status: str
    version: str | None
    update_error: str | None


class Model(BaseModel):
    """The model that answers."""

    name: str
    alias: str | None = Field(description="The alias that is followed, if any.")
    version: str | None
    loaded_at: str
    pool_size: int
    tasks: dict[str, int] = Field(description="Pool examples of each task.")
    k: int = Field(description="Demonstrations of a query that asks for no number.")
    selection: dict[str, Any] = Field(
        description="How demonstrations are chosen: search.selection of the model's evaluation."
    )
    update_error: str | None = Field(description="Why the last update failed, if it did.")


def create_app(
    live: LiveModel,
    *,
    limits: Limits,
    batch_size: int,
    threads: int | None,
    poll_seconds: float,
    on_failure: Callable[[BaseException], None],
    access_log: bool = True,
) -> FastAPI:
    """Return the application. `on_failure` is told why the first model could not be loaded."""
    batcher = Batcher(batch_size=batch_size, most_waiting=32 * batch_size, threads=threads)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                on_failure(error)

        watching = asyncio.create_task(watch(live, poll_seconds))
        watching.add_done_callback(ended)
        yield
        watching.cancel()
        await batcher.close()
        event(log, "stopped")

    app = FastAPI(
        title="Exemplar",
        version=exemplar.__version__,
        description="Picks the few-shot examples that a language model learns most from.",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, most=limits.max_body_bytes)
    if access_log:
        app.add_middleware(AccessLog)
    add_handlers(app)
    _add_select(app, live, batcher, limits)
    _add_state(app, live)
    return app


def _add_select(app: FastAPI, live: LiveModel, batcher: Batcher, limits: Limits) -> None:
    One: Any = wire.limited(max_k=limits.max_k, max_query_chars=limits.max_query_chars)
    Many = Annotated[list[One], Field(min_length=1, max_length=limits.max_queries)]
    Asked = Annotated[
        Annotated[One, Tag("one")] | Annotated[Many, Tag("many")],
        Discriminator(lambda body: "many" if isinstance(body, list) else "one"),
    ]

    @app.post(
        "/v1/select",
        summary="Choose demonstrations for one query, or for each of a list",
        response_model=Answer | list[Answer],
        response_model_exclude_unset=True,
        responses=dict.fromkeys((400, 413, 422, 500, 503), _PROBLEM),
    )
    async def select(request: Request, asked: Annotated[Asked, Body()]) -> JSONResponse:
        model = _ready(live)
        many: list[wire.SelectRequest] = asked if isinstance(asked, list) else [asked]
        queries = [wire.query_of(item) for item in many]
        for query in queries:
            model.retriever.check(query)
        # The model's own default may be above the limit.
        counts = [min(model.retriever.count(query), limits.max_k) for query in queries]
        queries = [replace(query, k=k) for query, k in zip(queries, counts, strict=True)]
        selections = await batcher.answer(model, queries)
        request.state.told = {"queries": len(queries), "version": model.version}
        answers: list[dict[str, Any]] = [
            {**wire.answer_of(selection, item.format), "version": model.version}
            for selection, item in zip(selections, many, strict=True)
        ]
        return JSONResponse(answers if isinstance(asked, list) else answers[0])


def _add_state(app: FastAPI, live: LiveModel) -> None:
    @app.get("/health", summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready",
        summary="Whether queries are answered",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "No model is loaded yet."}},
    )
    async def ready() -> JSONResponse:
        current = live.current
        state = Readiness(
            status="ready" if current else "loading",
            version=current.version if current else None,
            update_error=live.update_error,
        )
        return JSONResponse(state.model_dump(), 200 if current else 503)

    @app.get("/v1/model", summary="Which model answers", responses={503: _PROBLEM})
    async def model() -> Model:
        current = _ready(live)
        sizes = current.retriever.sizes
        return Model(
            name=live.source.name,
            alias=live.source.alias,
            version=current.version,
            loaded_at=current.since,
            pool_size=sum(sizes.values()),
            tasks=sizes,
            k=current.retriever.settings.num_shots,
            selection=asdict(current.retriever.settings.rules),
            update_error=live.update_error,
        )


def _ready(live: LiveModel) -> Loaded:
    if live.current is None:
        raise NotReadyError
    return live.current


_PROBLEM: dict[str, Any] = {
    "description": "A problem document (RFC 9457).",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}
