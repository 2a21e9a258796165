"""A server that speaks OpenAI's completions: its address, one request, its errors in plain words.

The official library does the talking, with its retries (exponential backoff with jitter,
`Retry-After`) and timeouts. No key and no password ever enters a message: errors are raised outside
the handlers of the library's errors, so that not even a traceback leads back to a request.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import openai

from exemplar.errors import ModelError

_EXPECTED = (
    "expected openai:<model>@<base url>, for example openai:smollm2@http://localhost:8000/v1"
)
_REFERENCE = re.compile(r"openai:(?P<model>[^@]+(?:@[^@]+)*?)@(?P<url>https?://\S+)")
_PLACEHOLDER = "none"  # the library insists on a key; servers that want none ignore it
_MOST_WORDS = 300  # characters of the server's own words in a message


class RefusalError(Exception):
    """The server will not take this request, whoever sends it (400, 413, 422); says why."""


@dataclass(frozen=True)
class Address:
    """What `openai:<model>@<base url>` names. `url` has no user info; `login` is that."""

    model: str
    url: str
    login: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """The reference, fit to be shown."""
        return f"openai:{self.model}@{self.url}"


@dataclass(frozen=True, slots=True)
class Reply:
    """The choices in the order of the prompts, and the tokens that the server counted in all."""

    choices: list[Mapping[str, Any]]
    prompt_tokens: int | None
    completion_tokens: int | None


def parse(ref: str) -> Address:
    """Return the address that a reference names; `ModelError` on a malformed one."""
    # What stands behind the @ may hold a password: it is shown only where it is understood.
    shown = ref.split("@")[0] + ("@..." if "@" in ref else "")
    found = _REFERENCE.fullmatch(ref)
    if not found:
        raise ModelError(f"model {shown!r}: {_EXPECTED}.")
    url = urlsplit(found["url"])
    if not url.hostname or url.query or url.fragment:
        raise ModelError(
            f"model {shown!r}: the base url needs a host, and can have no ? or #; {_EXPECTED}."
        )
    login, _, host = url.netloc.rpartition("@")
    plain = url._replace(netloc=host).geturl().rstrip("/")
    return Address(found["model"], plain, unquote(login))


class Client:
    """Sends completion requests for one model; may be used by several threads at once."""

    def __init__(
        self, address: Address, *, api_key: str | None, timeout: float, max_retries: int
    ) -> None:
        self.address = address
        self._has_key = bool(api_key)
        self._timeout, self._max_retries = timeout, max_retries
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ModelError(
                f"{address.name}: the API key holds blanks or characters that no HTTP header can "
                "carry. Expected the key alone; set it anew."
            )
        if key and address.login:
            raise ModelError(
                f"{address.name}: both an API key and a user name in the base url were given, but "
                "a request carries one of them. Leave one out."
            )
        basic = base64.b64encode(address.login.encode()).decode()
        password = address.login.partition(":")[2]
        self._secrets = [secret for secret in (key, address.login, password, basic) if secret]
        self._openai = openai.OpenAI(
            api_key=key or _PLACEHOLDER,
            base_url=address.url,
            timeout=timeout,
            max_retries=max_retries,
            default_headers={"Authorization": f"Basic {basic}"} if basic else None,
        )

    def complete(
        self, prompts: Sequence[str], *, max_retries: int | None = None, **options: Any
    ) -> Reply:
        """Return the completions of the prompts at temperature 0.

        A single prompt is sent as a text, for servers that take no list. Raises `RefusalError`
        where the request itself is at fault, and `ModelError` for everything else.
        """
        client, tries = self._openai, self._max_retries
        if max_retries is not None:
            client, tries = client.with_options(max_retries=max_retries), max_retries
        prompt: str | list[str] = prompts[0] if len(prompts) == 1 else list(prompts)
        failure: Exception
        try:
            raw = client.completions.with_raw_response.create(
                model=self.address.model, prompt=prompt, temperature=0, **options
            )
            content = raw.http_response.content
        except openai.OpenAIError as error:
            failure = self._failure(error, tries)
        else:
            return self._reply(content, len(prompts))
        raise failure

    def hide(self, text: str) -> str:
        """Return `text` on one line, shortened, without a key or a password."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return " ".join(text.split())[:_MOST_WORDS]

    def _reply(self, content: bytes, expected: int) -> Reply:
        body: Any = None
        try:
            body = json.loads(content)
            choices = sorted(body["choices"], key=lambda choice: int(choice["index"]))
            usage = body.get("usage") or {}
            reply = Reply(
                choices, *(_count(usage, key) for key in ("prompt_tokens", "completion_tokens"))
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            reply = Reply([], None, None)
        if len(reply.choices) != expected:
            got = self.hide(content[:200].decode("utf-8", "replace")) or "nothing"
            raise ModelError(
                f"{self.address.name}: expected a completion for each of {expected} prompts, got "
                f"what cannot be read as that: {got!r}. Check that the base url is that of an "
                "OpenAI-compatible server (it mostly ends with /v1)."
            )
        return reply

    def _failure(self, error: openai.OpenAIError, tries: int) -> Exception:
        name, url = self.address.name, self.address.url
        after = f"after {tries + 1} tries" if tries else "at the only try"
        if isinstance(error, openai.APITimeoutError):
            return ModelError(
                f"{name}: no answer within {self._timeout:g} seconds, {after}. The server may be "
                "overloaded: send less at once (concurrency), or look at its log."
            )
        if isinstance(error, openai.APIConnectionError):
            cause = self.hide(str(error.__cause__ or error))
            return ModelError(
                f"{name}: no connection to {url}, {after} ({cause}). Expected a running server "
                "there: start it, or correct the base url."
            )
        if not isinstance(error, openai.APIStatusError):
            return ModelError(f"{name}: the request failed: {self.hide(str(error))}")
        status, words = error.status_code, self.hide(_words(error))
        said = f"the server answered {status}: {words!r}"
        if status in (400, 413, 422):
            return RefusalError(said)
        if status in (401, 403):
            given = "the API key was not accepted" if self._has_key else "no API key was given"
            return ModelError(f"{name}: {given}; {said}. Give a key that may use this model.")
        if status == 404:
            return ModelError(
                f"{name}: {said}. Expected a server that serves the model "
                f"{self.address.model!r} with completions under {url}/completions: check the "
                "model's name and the base url (it mostly ends with /v1)."
            )
        if status == 429:
            return ModelError(
                f"{name}: too many requests, still {after}; {said}. Send less at once "
                "(concurrency), or raise the limit."
            )
        if status >= 500:
            return ModelError(
                f"{name}: the server failed, {after}; {said}. Look at the server's log."
            )
        return ModelError(f"{name}: expected a completion, but {said}.")


def _count(usage: Mapping[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) else None


def _words(error: openai.APIStatusError) -> str:
    """What the server said, wherever in the body it said it."""
    body = error.body
    if isinstance(body, Mapping):
        found = next((body[key] for key in ("message", "detail", "error") if body.get(key)), body)
        return str(found)
    return str(body or error.response.text or "nothing")
