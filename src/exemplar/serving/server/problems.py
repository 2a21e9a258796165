"""What is wrong with a request, as a problem document (RFC 9457): JSON, never a traceback.

It holds title, status, detail in words, and errors: the fields at fault, with a message each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from exemplar.errors import ConfigError, ExemplarError, TaskError
from exemplar.serving.server.batching import OverloadError
from exemplar.serving.wire import faults_of


class Problem(BaseModel):
    """Why a request was refused."""

    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = Field(description="The fields at fault: field and message.")


class NotReadyError(Exception):
    """No model is loaded yet."""


def problem(
    status: int,
    detail: str,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the response that tells a problem."""
    content = {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": [{"field": field, "message": message} for field, message in errors],
    }
    return JSONResponse(
        content, status, headers=dict(headers or {}), media_type="application/problem+json"
    )


def add_handlers(app: FastAPI) -> None:
    """Let every error of the application come out as a problem document."""
    later = {"Retry-After": "1"}

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        if any(item["type"] == "json_invalid" for item in errors):
            return problem(400, "The body is not JSON; expected an object or a list of them.")
        faults = [(_without_tags(field), message) for field, message in faults_of(errors)]
        told = "; ".join(f"{field or 'body'}: {message}" for field, message in faults)
        return problem(422, told, faults)

    async def refused(_: Request, error: ExemplarError) -> JSONResponse:
        if isinstance(error, ConfigError | TaskError):
            return problem(422, str(error))
        return problem(500, str(error))

    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def not_ready(_: Request, error: Exception) -> JSONResponse:
        return problem(503, "The model is still being loaded; see /ready.", headers=later)

    async def overloaded(_: Request, error: Exception) -> JSONResponse:
        return problem(503, "Too many queries wait already; try again shortly.", headers=later)

    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "The server failed on this request; its log says how.")

    handlers: dict[Any, Any] = {
        RequestValidationError: invalid,
        ExemplarError: refused,
        HTTPException: plain,
        NotReadyError: not_ready,
        OverloadError: overloaded,
        Exception: unforeseen,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _without_tags(field: str) -> str:
    """Return a field's place in the body: "k", or "2.filters.tasks" for the third of a list."""
    kept = [part for part in field.split(".") if part not in ("body", "one", "many")]
    return ".".join(kept)
