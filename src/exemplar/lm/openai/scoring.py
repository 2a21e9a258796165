"""What scoring asks of a server: echoes with log-probabilities, and a proof that they are right."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from exemplar.errors import ModelError, PromptError
from exemplar.lm.openai.client import Client, RefusalError, Reply
from exemplar.lm.openai.echo import Echo, UnreadableError, read_echo

logger = logging.getLogger(__name__)

_PROBE = "One, two, three, four,"
_TOLERANCE = 0.5  # nats between a token generated and the same token echoed; half precision: 0.1
_NEEDED = (
    "Scoring and labels need a server whose completions return the prompt's log-probabilities for "
    "echo=true and logprobs=1, as vLLM, SGLang and llama-cpp-python (with logits_all) do; "
    "llama.cpp's own llama-server and chat-only services do not."
)


class EchoServer:
    """Has texts echoed with their tokens; `batch_size`: the most texts in one request."""

    def __init__(self, client: Client, batch_size: int) -> None:
        self._client, self._batch_size = client, batch_size
        self._name = client.address.name
        self._probed: int | None = None  # texts that the server takes in one request

    def probe(self) -> int:
        """Return how many texts a scoring request may hold; `ModelError` if none can be scored.

        Asked once, before any work: whether the server echoes log-probabilities, whether it takes
        lists, and whether the log-probabilities are those of the tokens they stand at. (Some
        servers shift them by one, for models without a beginning-of-text token.)
        """
        if self._probed is None:
            try:
                [short] = self._read(self._ask([_PROBE]), [_PROBE])
                token, expected = self._next_token()
                size, longer = self._in_lists(_PROBE + (token or " five"))
            except RefusalError as refusal:
                raise ModelError(f"{self._name}: {refusal}. {_NEEDED}") from None
            found = longer.logprobs[-1]
            if (
                token
                and expected is not None
                and found is not None
                and (longer.ends[:-1] == short.ends)
            ):
                self._compare(token, expected, found)
            else:
                logger.warning("%s: no way to check the echoed log-probabilities", self._name)
            self._probed = size
        return self._probed

    def _in_lists(self, text: str) -> tuple[int, Echo]:
        """Return how many texts a request may hold, and the echo of `text`."""
        if self._batch_size > 1:
            try:
                texts = [text, _PROBE]
                return self._batch_size, self._read(self._ask(texts, max_retries=1), texts)[0]
            except (RefusalError, ModelError) as error:
                logger.info("one text a request, since %s takes no lists: %s", self._name, error)
        return 1, self._read(self._ask([text]), [text])[0]

    def _next_token(self) -> tuple[str, float | None]:
        """Return the likeliest token behind the probe, generated and not echoed."""
        choice = self._client.complete([_PROBE], logprobs=1, max_tokens=1).choices[0]
        try:
            told = choice["logprobs"]
            return str(told["tokens"][0]), float(told["token_logprobs"][0])
        except (TypeError, KeyError, IndexError, ValueError):
            return "", None  # nothing to compare with: the text ends here, or it is not told

    def _compare(self, token: str, generated: float, echoed: float) -> None:
        if abs(generated - echoed) > _TOLERANCE:
            raise ModelError(
                f"{self._name}: the token {token!r} has log-probability {generated:.3f} when "
                f"generated but {echoed:.3f} when echoed; expected the same. The server tells the "
                "prompt's log-probabilities at the wrong tokens, so scores would be wrong: update "
                "it, or use another server."
            )

    def echoes(self, texts: Sequence[str], indices: Sequence[int]) -> list[Echo]:
        """Return the tokens of each text; where a batch is refused, find out whose fault it is."""
        try:
            return self._read(self._ask(texts), texts)
        except RefusalError as refusal:
            if len(texts) == 1:
                raise refused(refusal, indices[0]) from None
        alone = zip(texts, indices, strict=True)
        return [echo for text, index in alone for echo in self.echoes([text], [index])]

    def _ask(self, texts: Sequence[str], max_retries: int | None = None) -> Reply:
        # Some servers refuse to generate nothing, so one token is generated, and left out.
        return self._client.complete(
            texts, max_retries=max_retries, echo=True, logprobs=1, max_tokens=1
        )

    def _read(self, reply: Reply, texts: Sequence[str]) -> list[Echo]:
        generated = 1 if reply.completion_tokens is None else reply.completion_tokens // len(texts)
        try:
            echoes = [
                read_echo(choice, text, generated)
                for choice, text in zip(reply.choices, texts, strict=True)
            ]
        except UnreadableError as error:
            reason = self._client.hide(str(error))
        else:
            self._check_finite(echoes)
            return echoes
        raise ModelError(f"{self._name}: the server's echo cannot be used: {reason}. {_NEEDED}")

    def _check_finite(self, echoes: Sequence[Echo]) -> None:
        for echo in echoes:
            bad = [v for v in echo.logprobs if v is not None and not math.isfinite(v)]
            if bad:
                raise ModelError(
                    f"{self._name}: the log-probability of a token is {bad[0]}; expected a finite "
                    f"number. The text begins {echo.text[:40]!r}. The weights may be broken, or "
                    "overflow in the server's precision: start it with another dtype."
                )
            if None in echo.logprobs[1:]:
                raise ModelError(
                    f"{self._name}: the server tells no log-probability for "
                    f"{echo.logprobs.count(None)} of {len(echo.logprobs)} prompt tokens. {_NEEDED}"
                )


def refused(refusal: RefusalError, index: int | None) -> PromptError:
    """Return the error for a text that the server will not take; `index`: which of several."""
    which = "" if index is None else f"item {index}: "
    return PromptError(
        f"{which}{refusal}. This engine cuts no prompt; if the text is too long, use fewer "
        "demonstrations, or a server with a longer context.",
        index=index,
    )
