"""An encoder's folder: found, checked, its weights loaded, and written for sentence-transformers.

A sentence-transformers folder is a transformers folder with a list of modules beside it
(modules.json), each with its own settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exemplar.data.io import read_json, write_json
from exemplar.errors import ModelError
from exemplar.models import resolve, transformers_alone

_POOLING_FLAG = "pooling_mode_mean_tokens"


def write_modules(folder: Path, *, max_length: int, dimension: int) -> None:
    """Write what makes a transformers folder a sentence-transformers one.

    The modules are a transformer, mean pooling and normalisation, under the names that every
    version of sentence-transformers reads.
    """
    package = "sentence_transformers.models"
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{package}.{kind}"}
        for number, (kind, path) in enumerate(kinds.items())
    ]
    pooling = {
        "word_embedding_dimension": dimension,
        "pooling_mode_cls_token": False,
        _POOLING_FLAG: True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    whole: dict[str, object] = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    cutting = {"max_seq_length": max_length, "do_lower_case": False}
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", whole)
    write_json(folder / "sentence_bert_config.json", cutting)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "2_Normalize" / "config.json", {})


def find(ref: str) -> Path:
    """Return the local folder of a model reference, from the hub's cache where it is a hub id."""
    path = Path(resolve(ref))
    if not path.exists():
        path = _download(ref)
    if not path.is_dir() or not (
        (path / "config.json").is_file() or (path / "modules.json").is_file()
    ):
        holds = sorted(child.name for child in path.iterdir())[:8] if path.is_dir() else "a file"
        raise ModelError(
            f"{path} is no encoder: expected a folder with config.json (transformers) or "
            f"modules.json (sentence-transformers), got {holds or 'an empty folder'}. Give the "
            "folder of a model, or run the step that writes it (`dvc repro`)."
        )
    return path


def _download(ref: str) -> Path:
    """Fetch a model from the hub: settings, tokenizer and weights, safetensors where there are."""
    from huggingface_hub import snapshot_download

    apart = ["onnx/*", "openvino/*"]
    try:
        path = Path(
            snapshot_download(
                ref,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
                ignore_patterns=apart,
            )
        )
        if not any(path.rglob("*.safetensors")):
            snapshot_download(ref, allow_patterns=["*.bin"], ignore_patterns=apart)
    except (OSError, ValueError) as error:  # no such model, no permission, no network, no cache
        raise ModelError(
            f"model {ref!r} could not be had from the hub ({type(error).__name__}: {error}). "
            "Check the name and the connection, or give a local folder or "
            "package:<python package>/<folder>."
        ) from error
    return path


def read_modules(folder: Path) -> tuple[Path, int | None]:
    """Return the transformer's folder and the recorded max_length of a model folder.

    A folder without modules.json is a plain transformers model. Any module beside a transformer,
    mean pooling and normalisation is refused: its part of the computation would be lost.
    """
    if not (folder / "modules.json").is_file():
        return folder, None
    transformer: Path | None = None
    for module in read_json(folder / "modules.json"):
        kind = str(module.get("type")).rsplit(".", 1)[-1]
        path = folder / str(module.get("path", ""))
        if kind == "Transformer" and transformer is None:
            transformer = path
        elif kind == "Pooling":
            config = read_json(path / "config.json")
            flags = [name for name, on in config.items() if "pooling_mode_" in name and on]
            mode = config.get("pooling_mode", ", ".join(flags))
            if mode not in ("mean", _POOLING_FLAG):
                raise ModelError(
                    f"{folder} pools by {mode!r}; expected 'mean', the only pooling that the "
                    "method uses (paper, section 3.3). Give a model that pools by the mean."
                )
        elif kind != "Normalize":
            raise ModelError(
                f"{folder} has a module {module.get('type')}; expected Transformer, Pooling and "
                "Normalize alone. Give a model without it."
            )
    if transformer is None:
        raise ModelError(f"{folder}: modules.json names no Transformer. Give a complete model.")
    settings = transformer / "sentence_bert_config.json"
    recorded = read_json(settings).get("max_seq_length") if settings.is_file() else None
    return transformer, recorded


def load_weights(folder: Path) -> Any:
    """Load the transformer in float32 and check that the checkpoint held all of its weights."""
    from transformers import AutoModel

    try:
        with transformers_alone():
            model, info = AutoModel.from_pretrained(
                str(folder), dtype="float32", output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder} holds no transformer that can be loaded ({type(error).__name__}: {error}). "
            "Expected config.json with model_type, and model.safetensors. Give another model, or "
            "remake this one."
        ) from error
    missing = sorted(info["missing_keys"])
    if any(name.startswith("pooler.") for name in missing):
        model.pooler = None  # mean pooling has no use for it, and its weights would be random
    lost = [name for name in missing if not name.startswith("pooler.")]
    if lost:
        raise ModelError(
            f"{folder}: {len(lost)} weights are missing from the checkpoint, the first being "
            f"{lost[0]}; they would be random. Give a complete model."
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a transformers folder; without its files there is `ModelError`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no tokenizer that can be loaded ({type(error).__name__}: {error}). "
            "Expected tokenizer.json, or a vocabulary, beside the weights. Give a complete model."
        ) from error
    # With no files at all transformers may build one that knows nothing but special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{folder}: its tokenizer has no words, only special tokens. Expected tokenizer.json, "
            "or a vocabulary, beside the weights. Give a complete model."
        )
    return tokenizer
