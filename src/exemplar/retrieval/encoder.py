"""The bi-encoder: texts to unit vectors, by mean pooling over the last hidden states.

Shape suffixes: B batch, T tokens, D embedding size, N texts.

It reads transformers and sentence-transformers folders and writes sentence-transformers ones, on
transformers alone: importing sentence_transformers takes seconds, and every step is a process.
Weights stay in float32 (they are trained); on a GPU the forward pass runs in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exemplar import models
from exemplar.data.io import atomic_folder, read_json, write_json
from exemplar.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_MAX_LENGTH = 256
"""Tokens a text is cut to where neither the caller nor the model says otherwise (paper, table 7)."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# On a CPU small batches stay in its cache: 2,048 took a third less time than 16,384 on MiniLM.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_POOLING_FLAG = "pooling_mode_mean_tokens"


class Encoder:
    """A transformer with mean pooling and L2 normalisation.

    `model` is the transformers model, `tokenizer` its fast tokenizer, `max_length` the tokens a
    text is cut to (special tokens included), `dtype` the type that the forward pass computes in.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, dtype: str = "auto"):
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        if dtype not in _DTYPES:
            raise ModelError(f"dtype {dtype!r}: expected auto, {', '.join(_DTYPES)}.")
        self.dtype = dtype

    @classmethod
    def load(
        cls,
        ref: str | Path,
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
    ) -> Encoder:
        """Load an encoder from a folder, a hub id or package:<package>/<folder>.

        `max_length` None takes the length that the folder records (sentence_bert_config.json), or
        256 where it records none. `device` None takes the GPU where there is one. Raises
        `ModelError` where there is no model, or one that pools otherwise than by the mean.
        """
        from transformers import AutoTokenizer

        folder = _folder(str(ref))
        transformer, recorded = _read_modules(folder)
        model = _load_weights(transformer)
        tokenizer = AutoTokenizer.from_pretrained(str(transformer))
        length = _length(max_length, recorded, model, tokenizer, folder)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device).eval(), tokenizer, max_length=length, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dimension(self) -> int:
        """D, the size of an embedding."""
        return int(self.model.config.hidden_size)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids with special tokens, cut to `max_length` from the right, unpadded."""
        if not texts:
            return []
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = tokens["input_ids"]
        return ids

    def embed_tokens(self, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Embed tokenised texts, with gradients: float32 unit vectors of shape (B, D)."""
        longest = max(len(ids) for ids in token_ids)
        padding = self.tokenizer.pad_token_id or 0
        ids_BT = torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids in token_ids])
        lengths_B = torch.tensor([len(ids) for ids in token_ids])
        mask_BT = (torch.arange(longest)[None, :] < lengths_B[:, None]).to(self.device)
        with torch.autocast(
            self.device.type, dtype=_DTYPES[self.dtype], enabled=self.dtype != "float32"
        ):
            output = self.model(input_ids=ids_BT.to(self.device), attention_mask=mask_BT.long())
        hidden_BTD = output.last_hidden_state.float()
        # The mean keeps the padding out; its length is never zero, special tokens are always there.
        sums_BD = (hidden_BTD * mask_BT[:, :, None]).sum(dim=1)
        means_BD = sums_BD / mask_BT.sum(dim=1, keepdim=True)
        return torch.nn.functional.normalize(means_BD, dim=-1)

    def encode(
        self, texts: Sequence[str], *, batch_tokens: int | None = None, progress: str | None = None
    ) -> NDArray[np.float32]:
        """Return the float32 unit vectors (N, D) of texts, in the order given.

        Equal texts are computed once. Batches hold texts of like length, at most `batch_tokens`
        tokens with padding (None: what suits the device). Raises `ModelError` where the model gives NaN or infinity.
        """
        import numpy as np
        from tqdm.auto import tqdm

        if batch_tokens is None:
            batch_tokens = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS["cpu"])
        unique = list(dict.fromkeys(texts))
        token_ids = self.tokenize(unique)
        embeddings_ND = np.zeros((len(unique), self.dimension), dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                tqdm(total=len(unique), desc=progress, disable=progress is None) as bar,
            ):
                for rows in _batches([len(ids) for ids in token_ids], batch_tokens):
                    batch_BD = self.embed_tokens([token_ids[row] for row in rows]).cpu()
                    finite_B = torch.isfinite(batch_BD).all(dim=1)
                    if not bool(finite_B.all()):
                        text = unique[rows[int((~finite_B).nonzero()[0])]]
                        raise ModelError(
                            f"the encoder gave a value that is not finite for the text {text[:80]!r}. "
                            "Its weights are broken, perhaps by training that diverged: train it "
                            "again with a lower learning rate, or use dtype float32."
                        )
                    embeddings_ND[rows] = batch_BD.numpy()
                    bar.update(len(rows))
        finally:
            self.model.train(was_training)
        position = {text: row for row, text in enumerate(unique)}
        return embeddings_ND[[position[text] for text in texts]]

    def freeze_positions(self) -> int:
        """Stop the position embeddings from training; return how many tensors that froze."""
        frozen = 0
        for name, parameter in self.model.named_parameters():
            if "position_embeddings" in name:
                parameter.requires_grad_(False)
                frozen += 1
        return frozen

    def save(self, folder: str | Path) -> None:
        """Write a folder that plain sentence-transformers opens, whole or not at all."""
        with atomic_folder(Path(folder)) as path:
            with models.quiet_transformers():
                self.model.save_pretrained(path)
                self.tokenizer.save_pretrained(path)
            (path / "model.safetensors").chmod(0o644)  # written readable by its owner alone
            module = "sentence_transformers.models"
            modules = [
                {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
            ]
            write_json(path / "modules.json", modules)
            write_json(
                path / "sentence_bert_config.json",
                {"max_seq_length": self.max_length, "do_lower_case": False},
            )
            write_json(
                path / "config_sentence_transformers.json",
                {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
            )
            write_json(
                path / "1_Pooling" / "config.json",
                {
                    "word_embedding_dimension": self.dimension,
                    "pooling_mode_cls_token": False,
                    _POOLING_FLAG: True,
                    "pooling_mode_max_tokens": False,
                    "pooling_mode_mean_sqrt_len_tokens": False,
                },
            )
            (path / "2_Normalize").mkdir()
            write_json(path / "2_Normalize" / "config.json", {})


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group row numbers, shortest first, so that padded batches hold at most `batch_tokens`."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):  # stable: equal input order
        if not batches or (len(batches[-1]) + 1) * lengths[row] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _folder(ref: str) -> Path:
    """Return the local folder of a model reference, from the hub's cache where it is a hub id."""
    path = Path(models.resolve(ref))
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


def _read_modules(folder: Path) -> tuple[Path, int | None]:
    """Return the transformer's folder and the recorded max_length of a model folder.

    A folder without modules.json is a plain transformers model. Any module beside a transformer,
    mean pooling and normalisation is refused: its part of the computation would be lost.
    """
    if not (folder / "modules.json").is_file():
        return folder, None
    transformer: Path | None = None
    for module in read_json(folder / "modules.json"):
        kind, path = str(module["type"]).rsplit(".", 1)[-1], folder / module["path"]
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
                f"{folder} has a module {module['type']}; expected Transformer, Pooling and "
                "Normalize alone. Give a model without it."
            )
    if transformer is None:
        raise ModelError(f"{folder}: modules.json names no Transformer. Give a complete model.")
    settings = transformer / "sentence_bert_config.json"
    recorded = read_json(settings).get("max_seq_length") if settings.is_file() else None
    return transformer, recorded


def _load_weights(folder: Path) -> Any:
    """Load the transformer in float32 and check that the checkpoint held all of its weights."""
    from transformers import AutoModel

    try:
        with models.quiet_transformers():
            model, info = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, output_loading_info=True
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


def _length(
    asked: int | None, recorded: int | None, model: Any, tokenizer: Any, folder: Path
) -> int:
    """Return the max_length to use, checked against the positions that the model has."""
    positions = getattr(model.config, "max_position_embeddings", None)
    most = min(positions or tokenizer.model_max_length, tokenizer.model_max_length)
    if asked is None:
        return min(recorded or DEFAULT_MAX_LENGTH, most)
    if not 2 < asked <= most:
        raise ModelError(
            f"max_length {asked} does not suit {folder}: expected 3 to {most} tokens, as many as "
            "the model has positions. Lower max_length, or choose a model with more."
        )
    return asked
