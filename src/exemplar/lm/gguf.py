"""GGUF files, converted once to a folder that transformers opens fast.

transformers reads a GGUF file by parsing all its metadata in Python (half a minute for a
vocabulary of 49,000 tokens) and de-quantising every weight. The result is the same each time, so
it is kept in a cache folder, named by the file's content, the precision and transformers' version.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from exemplar.data.io import atomic_folder, fingerprint
from exemplar.errors import ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MAGIC = b"GGUF"


def converted(file: Path, dtype: torch.dtype, cache_dir: Path) -> Path:
    """Return the folder with the model and tokenizer of a GGUF file, made now if need be.

    Several processes may ask at once: one converts, the others wait for it. Raises `ModelError`
    where the file is no GGUF, transformers cannot read it, or the cache cannot be written.
    """
    import transformers
    from filelock import FileLock

    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(
                f"{file} is not a GGUF file (it does not begin with the bytes {_MAGIC.decode()}). "
                "It may be cut off or a pointer to a file not yet fetched; get it again."
            )
    precision = str(dtype).removeprefix("torch.")
    name = (
        f"{file.stem}-{fingerprint(file)[:16]}-{precision}-transformers-{transformers.__version__}"
    )
    folder = cache_dir / name
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f".{name}.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                logger.info("converting %s once, about half a minute; kept in %s", file, folder)
                _convert(file, folder, dtype)
    except PermissionError as error:
        raise ModelError(
            f"the converted weights of {file} cannot be kept in {cache_dir} ({error.strerror}). "
            "Give a cache folder that can be written."
        ) from error
    return folder


def _convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers' bar over weights
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype
            )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise ModelError(
            f"transformers cannot read the GGUF file {file}: {error}. Expected a causal language "
            "model of an architecture that transformers supports; give another file or a hub id."
        ) from error
    # A model that came from a GGUF file counts as quantised and refuses to be saved, so its
    # de-quantised weights move into a fresh model of the same shape.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    plain.load_state_dict(model.state_dict())
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
