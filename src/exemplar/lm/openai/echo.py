"""Echoed texts: which token of the server's covers which characters of the text sent.

Servers tell tokens as strings. Joined they should be the text, but a beginning-of-text token may
stand first, pieces of a character come as U+FFFD or as nothing, and some tokenizers drop the space
before a word. `text_offset` is of little help: it is missing (SGLang) or counts the
beginning-of-text token (vLLM). So the strings are laid against the text, and what does not fit is
refused: a score of other characters would look like any other score.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from exemplar.lm.labels import END, Prefix, descend

ENDINGS = ("\n", "\n\n")
"""What may follow a complete label: a line's end, or the empty line between demonstrations."""

_BROKEN = "\ufffd"
_NON_ASCII = "[^\\x00-\\x7f]*"  # what pieces of characters can be pieces of


class UnreadableError(Exception):
    """A choice that does not tell the tokens of its text; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a text.

    `ends[i]` is where token i ends in the text, in characters; it never falls. Pieces of one
    character all end where the character does. `logprobs[i]` is None where nothing came before.
    `ended`: greedy decoding ends the text here.
    """

    text: str
    ends: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    ended: bool

    def answer(self, prompt_length: int) -> tuple[float | None, ...]:
        """Return the log-probabilities of the tokens that end behind the prompt."""
        return self.logprobs[bisect_right(self.ends, prompt_length) :]

    def units(self) -> Iterator[tuple[str, float | None]]:
        """Yield (characters, log-probability), tokens within one character taken together."""
        begin = at = 0
        while at < len(self.ends):
            stop = bisect_right(self.ends, self.ends[at])
            parts = [value for value in self.logprobs[at:stop] if value is not None]
            whole = len(parts) == stop - at
            yield self.text[begin : self.ends[at]], math.fsum(parts) if whole else None
            begin, at = self.ends[at], stop


def read_echo(choice: Mapping[str, Any], text: str, generated: int) -> Echo:
    """Return the tokens of `text` from a choice that echoes it.

    `generated` says how many tokens are expected behind the text, 0 or 1; the strings decide.
    Raises `UnreadableError` on a choice without tokens or log-probabilities, or of another text.
    """
    told = choice.get("logprobs")
    told = told if isinstance(told, Mapping) else {}
    tokens: Any = told.get("tokens")
    values: Any = told.get("token_logprobs")
    if not _all(tokens, str) or not _all(values, int | float | None) or len(tokens) != len(values):
        raise UnreadableError("the answer has no list of tokens with their log-probabilities")
    for extra in dict.fromkeys((generated, 1, 0)):
        size = len(tokens) - extra
        if size < 1:
            continue
        ends = _by_strings(tokens[:size], text) or _by_offsets(told.get("text_offset"), size, text)
        if ends:
            return Echo(
                text,
                tuple(ends),
                tuple(None if value is None else float(value) for value in values[:size]),
                choice.get("finish_reason") == "stop",
            )
    raise UnreadableError(
        f"its {len(tokens)} tokens ({', '.join(map(repr, tokens[:4]))}, ...) are not those of the "
        f"text sent, which begins {text[:40]!r}"
    )


def choose_label(labels: Sequence[str], echoes: Mapping[str, Echo]) -> int | None:
    """Return the index of the label that greedy decoding arrives at.

    `echoes` maps each label, and each label + ending where another label continues it, to the echo
    of prompt + that. None where the prompt's first token already depends on the label, so that the
    server has no log-probability for it. The end-of-text token counts where it is the likeliest
    token of all; the server does not tell its log-probability elsewhere.
    """
    units = {key: tuple(echo.units()) for key, echo in echoes.items()}
    # Shared by all labels, so nothing is decided there: mostly the prompt.
    columns = zip(*([part for part, _ in units[label]] for label in labels), strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
    ids: dict[str, int] = {}
    sequences: dict[str, Prefix] = {}
    values: dict[str, list[float | None]] = {}
    for key, found in units.items():
        if [part for part, _ in found[: len(shared)]] == shared:
            own = found[len(shared) :]
            sequences[key] = tuple(ids.setdefault(part, len(ids)) for part, _ in own)
            values[key] = [value for _, value in own]
    ends = {ids[ending] for ending in ENDINGS if ending in ids}
    blind = False

    def worth(prefix: Prefix, option: int) -> float:
        nonlocal blind
        depth = len(prefix)
        if option == END:
            label = next(key for key in labels if sequences[key] == prefix)
            if echoes[label].ended:
                return math.inf
            nexts = [(*prefix, end) for end in ends]
            keys = [label + ending for ending in ENDINGS if label + ending in sequences]
        else:
            nexts, keys = [(*prefix, option)], list(labels)
        found = [values[key][depth] for key in keys if sequences[key][: depth + 1] in nexts]
        blind = blind or None in found
        return max((value for value in found if value is not None), default=-math.inf)

    def choose(prefix: Prefix, options: list[int]) -> int:
        worths = [worth(prefix, option) for option in options]
        return options[worths.index(max(worths))]

    chosen = descend([sequences[label] for label in labels], choose)
    return None if blind else chosen


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _by_strings(tokens: Sequence[str], text: str) -> list[int] | None:
    """Return where each token ends, by laying the strings against the text; None: they differ."""
    ends: list[int] = []
    waiting: list[str] = []  # pieces of characters, placed once a whole token follows
    at = 0
    for token in tokens:
        if not waiting and token and text.startswith(token, at):
            at += len(token)
            ends.append(at)
        elif not token or _BROKEN in token:
            waiting.append(token)
        else:
            start = _place(token, text, at, waiting)
            if start is None and not ends and not waiting:
                # The first token may be a mark that is no text, or carry a space of its own.
                inner = token[1:] if token[0] == " " and text.startswith(token[1:]) else ""
                at = len(inner)
                ends.append(at)
                continue
            if start is None:
                return None
            ends += [start] * len(waiting)
            waiting = []
            at = start + len(token)
            ends.append(at)
    if waiting and not _fits(waiting, text[at:]):
        return None
    if not waiting and at < len(text):
        return None
    return ends + [len(text)] * len(waiting)


def _place(token: str, text: str, at: int, waiting: Sequence[str]) -> int | None:
    """Return where `token` stands once `waiting` is placed between it and `at`."""
    start = text.find(token, at)
    while start >= 0:
        gap = text[at:start]
        if _fits(waiting, gap) or (gap[-1:] == " " and _fits(waiting, gap[:-1])):
            return start
        start = text.find(token, start + 1) if waiting else -1
    return None


def _fits(pieces: Sequence[str], gap: str) -> bool:
    joined = "".join(piece or _BROKEN for piece in pieces)
    pattern = re.sub(f"{_BROKEN}+", lambda _: _NON_ASCII, re.escape(joined))
    return re.fullmatch(pattern, gap) is not None


def _by_offsets(offsets: Any, size: int, text: str) -> list[int] | None:
    """Return the ends by `text_offset`, if the generated token begins where the text ends."""
    if not _all(offsets, int) or len(offsets) != size + 1:
        return None
    rises = all(before <= after for before, after in pairwise(offsets))
    if not rises or offsets[0] != 0 or offsets[size] != len(text):
        return None
    return list(offsets[1:])
