"""The language-model engine: `load(ref)` gives a model that scores and generates (see `base`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exemplar.errors import ModelError

if TYPE_CHECKING:
    from exemplar.lm.base import LanguageModel


def load(
    ref: str,
    dtype: str = "auto",
    *,
    max_length: int = 1024,
    batch_tokens: int | None = None,
    cache_dir: Path | None = None,
    api_key: str | None = None,
) -> LanguageModel:
    """Load a causal language model that transformers can run, or reach one behind a server.

    Args:
        ref: `package:<python package>/<file or folder>`, a local folder, a local GGUF file, a
            hub id, or `openai:<model>@<base url>` for a server with OpenAI's completions. Of
            the arguments below a server heeds `max_length` and `api_key` alone.
        dtype: "float32", "bfloat16", "float16" or "auto": bfloat16 where the processor computes
            in it, else float32.
        max_length: the longest sequence, in tokens; longer prompts lose their left end.
        batch_tokens: at most so many tokens in one batch; None: what the free memory allows, up
            to 65,536. A batch that does not fit all the same is halved.
        cache_dir: where a GGUF file's converted weights are kept; None: ~/.cache/exemplar.
        api_key: what a server asks for; None: it asks for none.

    Raises:
        ModelError: the reference leads to no causal language model, or to one whose attention
            cannot be computed exactly over packed prefixes.
        ConfigError: an unknown dtype, or a length out of range.
    """
    if ref.startswith("openai:"):
        try:
            from exemplar.lm.openai.engine import OpenAiLM
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            raise ModelError(
                "models behind a server need the openai library, which is not installed here. "
                "Install it with `pip install 'exemplar[openai]'`."
            ) from error
        return OpenAiLM(ref, api_key=api_key, max_length=max_length)
    from exemplar.lm.loading import load as load_transformers

    return load_transformers(
        ref, dtype, max_length=max_length, batch_tokens=batch_tokens, cache_dir=cache_dir
    )
