"""One line of free text from a server, greedily, under the rule that it says something.

The transformers engine bars tokens that would end a line before anything visible was said. No
server is told so in one request that all of them understand: where a line comes back empty, the
likeliest other beginning is asked for, and the line goes on behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exemplar.errors import ModelError
from exemplar.lm.base import blank_line
from exemplar.lm.openai.client import Client, Reply

_ALTERNATIVES = 5  # for the first token; OpenAI's own completions tell no more
_SPECIAL = re.compile(r"<[^<>\s]+>")  # how servers show <|im_end|> or </s>: the text's end


def decode_line(client: Client, prompt: str, max_new_tokens: int) -> tuple[str, int]:
    """Return the line that follows `prompt`, and the tokens of all requests for it.

    The line is empty where the text ends at once, where the model begins with blanks, or where the
    server tells no visible alternative to an empty line. Raises as `Client.complete` does.
    """
    reply = client.complete([prompt], max_tokens=max_new_tokens, stop=["\n"])
    text, tokens = _text(client, reply), _tokens(reply)
    if text.split("\n")[0].strip() or max_new_tokens < 2:
        return _first_line(text), tokens
    reply = client.complete([prompt], max_tokens=1, logprobs=_ALTERNATIVES)
    opening, tokens = _opening(reply.choices[0]), tokens + _tokens(reply)
    if opening:
        reply = client.complete([prompt + opening], max_tokens=max_new_tokens - 1, stop=["\n"])
        text, tokens = opening + _text(client, reply), tokens + _tokens(reply)
    return _first_line(text), tokens


def _opening(choice: Mapping[str, Any]) -> str:
    """Return the likeliest first token that says something, if an empty line is likelier still."""
    try:
        told = choice["logprobs"]["top_logprobs"][0].items()
        ranked = [str(token) for token, _ in sorted(told, key=lambda item: -float(item[1]))]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return ""
    if not ranked or not blank_line(ranked[0]):
        return ""
    best = next((token for token in ranked if not blank_line(token)), "")
    return "" if _SPECIAL.fullmatch(best.strip()) else best


def _first_line(text: str) -> str:
    return text.split("\n")[0].strip()


def _text(client: Client, reply: Reply) -> str:
    text = reply.choices[0].get("text")
    if not isinstance(text, str):
        raise ModelError(
            f"{client.address.name}: expected a text in each choice, got {type(text).__name__}. "
            "Check that the server speaks OpenAI's completions."
        )
    return text


def _tokens(reply: Reply) -> int:
    return (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
