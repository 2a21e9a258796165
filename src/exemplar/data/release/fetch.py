"""Where the released files lie: in a folder, or in a data set on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exemplar.data.release.rows import COLUMNS
from exemplar.errors import DataError

HUB = "hf://datasets/intfloat/llm-retriever-tasks"
"""The authors' own data set; `@<commit>` behind it asks for one state of it."""

EXAMPLES = ("passages", "train", "test")
SCORED = tuple(name for name in COLUMNS if name not in EXAMPLES)

_ADDRESS = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def fetch(path: str | None, *, scores: bool) -> tuple[dict[str, Path], str | None]:
    """Return the files by name, those of candidates and rewards if asked for, and the commit.

    `path`: a folder, or an address like `HUB`, which is None's. Raises `DataError` where passages,
    train or test are missing. The scored files may be missing.
    """
    wanted = EXAMPLES + (SCORED if scores else ())
    address = _ADDRESS.fullmatch(path or HUB)
    if address:
        folder = _from_hub(address["name"], address["revision"], wanted)
    else:
        folder = Path(path or "")
    files = {name: folder / f"{name}.jsonl.gz" for name in wanted}
    found = {name: file for name, file in files.items() if file.is_file()}
    missing = [files[name].name for name in EXAMPLES if name not in found]
    if missing:
        raise DataError(
            f"{path or HUB} lacks {', '.join(missing)}: expected passages.jsonl.gz, train.jsonl.gz "
            "and test.jsonl.gz as the paper's authors released them, and, to train from their "
            "rewards, bm25_train, kd_bm25_train and kd_it2_train."
        )
    return found, folder.name if address else None


def _from_hub(name: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """Fetch files of a data set into the hub's cache; return their folder, named by the commit."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise DataError(
            "fetching from the hub needs huggingface_hub, which is not installed here. Install it "
            "with `pip install 'exemplar[hub]'`, or give a folder with the files as the path."
        ) from error
    network: tuple[Any, ...] = HfHubHTTPError.__bases__  # its HTTP library's root, whichever it is
    try:
        return Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                allow_patterns=[f"{file}.jsonl.gz" for file in wanted],
            )
        )
    except (*network, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} ({revision or 'main'}) cannot be had from the hub: {type(error).__name__}: "
            f"{error}\nCheck name and network, or give a folder with the files as the path."
        ) from error
