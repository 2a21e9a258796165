"""Requests and answers of the served model, as JSON objects or rows of a table.

`exemplar serve` and the registered MLflow model share these, so both take and give the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from exemplar.errors import ConfigError
from exemplar.serving.query import Filters, Query, Selection

Format = Literal["text", "chat", "both"]
_MOST_VALUES = 1000  # of one filter
Texts = Annotated[
    list[Annotated[str, Field(strict=True)]], Field(max_length=_MOST_VALUES, default_factory=list)
]


class FilterFields(BaseModel):
    """Which pool examples may be shown. What is left away does not restrict."""

    model_config = ConfigDict(extra="forbid", title="Filters")

    tasks: Texts = Field(description="Only examples of these tasks.")
    groups: Texts = Field(description="Only examples of these groups (a shared passage).")
    answers: Texts = Field(description="Only examples with these answers, for instance labels.")
    exclude_ids: Texts = Field(description="Never these examples.")
    exclude_groups: Texts = Field(description="Never examples of these groups.")
    min_similarity: Annotated[float, Field(strict=True, ge=-1, le=1)] | None = Field(
        None, description="Only examples at least this similar to the query (cosine)."
    )


class SelectRequest(BaseModel):
    """A query that demonstrations are wanted for."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"query": "The kettle came with a cracked lid.", "task": "support_desk"}]
        },
    )

    query: Annotated[str, Field(strict=True, min_length=1, description="The input to be answered.")]
    task: str | None = Field(None, description="Search this task's examples only.")
    k: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="How many demonstrations; none: as many as the model was evaluated with."
    )
    filters: FilterFields | None = Field(None, description="Which examples may be shown.")
    format: Format = Field(
        "text", description="text: prompt. chat: messages, a turn pair a demonstration. Or both."
    )


class DemonstrationFields(BaseModel):
    """A pool example, and its cosine similarity with the query."""

    model_config = ConfigDict(title="Demonstration")

    example_id: str
    task: str
    query: str
    answer: str
    similarity: float


class Message(BaseModel):
    """A turn of a chat."""

    role: Literal["user", "assistant"]
    content: str


class SelectAnswer(BaseModel):
    """The demonstrations for one query, the last in the prompt first, and the prompt.

    That is the nearest first, unless the model was evaluated with its demonstrations in another
    order.
    """

    demonstrations: list[DemonstrationFields]
    prompt: str | None = Field(None, description="With format text or both.")
    messages: list[Message] | None = Field(None, description="With format chat or both.")


def limited(*, max_k: int, max_query_chars: int) -> type[SelectRequest]:
    """Return the request's class with a server's limits in it, so that its OpenAPI states them."""
    text = Field(max_length=max_query_chars, description="The input to be answered.")
    own = SelectRequest.model_fields
    fields: dict[str, Any] = {
        "query": Annotated[str, *own["query"].metadata, text],
        "k": (
            Annotated[int, Field(strict=True, ge=1, le=max_k)] | None,
            Field(None, description=own["k"].description),
        ),
    }
    return create_model(
        "SelectRequest", __base__=SelectRequest, __doc__=SelectRequest.__doc__, **fields
    )


def query_of(request: SelectRequest) -> Query:
    """Return what the retriever is asked."""
    filters = Filters()
    if request.filters is not None:
        values = request.filters.model_dump()
        least = values.pop("min_similarity")
        filters = Filters(**{k: tuple(v) for k, v in values.items()}, min_similarity=least)
    return Query(request.query, request.task or None, request.k, filters)


def answer_of(selection: Selection, format: Format) -> dict[str, Any]:
    """Return a selection as `SelectAnswer` describes it, in plain values."""
    answer: dict[str, Any] = {
        "demonstrations": [
            {
                "example_id": item.example.example_id,
                "task": item.example.task,
                "query": item.example.query,
                "answer": item.example.answer,
                "similarity": item.similarity,
            }
            for item in selection
        ]
    }
    if format in ("text", "both"):
        answer["prompt"] = selection.prompt()
    if format in ("chat", "both"):
        answer["messages"] = selection.messages()
    return answer


def from_row(row: Mapping[str, Any], *, k: int | None, format: str) -> SelectRequest:
    """Return the request in a row of a table, where what is missing may be None, NaN or "".

    Raises `ConfigError` naming the fields that cannot be used.
    """
    given = {str(name): _plain(value) for name, value in row.items()}
    known = {"k": k, "format": format}
    known |= {name: value for name, value in given.items() if value not in (None, "")}
    try:
        return SelectRequest.model_validate({"query": given.get("query"), **known})
    except ValidationError as error:
        faults = "; ".join(f"{field}: {message}" for field, message in faults_of(error.errors()))
        raise ConfigError(f"The request cannot be used: {faults}.") from None


def faults_of(errors: Any) -> list[tuple[str, str]]:
    """Return pydantic's errors as (field, message) pairs, without the values that were sent."""
    return [(".".join(map(str, error["loc"])), str(error["msg"])) for error in errors]


def _plain(value: Any) -> Any:
    """Undo what data frames do to missing values, integers and lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else value
    return value
