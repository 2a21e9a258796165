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

from exemplar.data.io import atomic_folder
from exemplar.devices import default_device
from exemplar.errors import ModelError
from exemplar.models import transformers_alone
from exemplar.prepacked import prepack
from exemplar.retrieval import model_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_MAX_LENGTH = 256
"""Tokens a text is cut to where neither caller nor model says otherwise (paper, table 7)."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# On a CPU small batches stay in its cache: 2,048 took a third less time than 16,384 on MiniLM.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


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
        device: str | torch.device | None = None,
    ) -> Encoder:
        """Load an encoder from a folder, a hub id or package:<package>/<folder>.

        `max_length` None takes the length that the folder records (sentence_bert_config.json), or
        256 where it records none. `device` None takes the GPU where there is one. Raises
        `ModelError` where there is no model, or one that pools otherwise than by the mean.
        """
        folder = model_folder.find(str(ref))
        transformer, recorded = model_folder.read_modules(folder)
        model = model_folder.load_weights(transformer)
        tokenizer = model_folder.load_tokenizer(transformer)
        length = _length(max_length, recorded, model, tokenizer, folder)
        if device is None:
            device = default_device()
        return cls(model.to(device).eval(), tokenizer, max_length=length, dtype=dtype)

    def for_inference(self) -> Encoder:
        """Lay the weights out for the processor, once and for all; return this encoder.

        On a CPU it then embeds faster, above all single texts, and can be neither trained nor
        saved; on a GPU nothing changes.
        """
        prepack(self.model, _DTYPES[self.dtype])
        return self

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
        tokens with padding (None: what suits the device). Raises `ModelError` where the model
        gives NaN or infinity.
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
                    _check_finite(batch_BD, [unique[row] for row in rows])
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
            with transformers_alone():
                self.model.save_pretrained(path)
                self.tokenizer.save_pretrained(path)
            (path / "model.safetensors").chmod(0o644)  # written readable by its owner alone
            model_folder.write_modules(path, max_length=self.max_length, dimension=self.dimension)


def _check_finite(embeddings_BD: torch.Tensor, texts: Sequence[str]) -> None:
    """Raise `ModelError` naming the first text whose embedding is not finite."""
    finite_B = torch.isfinite(embeddings_BD).all(dim=1).tolist()
    if not all(finite_B):
        raise ModelError(
            f"the encoder gave NaN or infinity for the text {texts[finite_B.index(False)][:80]!r}; "
            "expected numbers. Its weights are broken, perhaps by training that diverged: train "
            "it again with a lower learning rate, or compute in float32."
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group row numbers, shortest first, so that padded batches hold at most `batch_tokens`."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):  # stable: equal input order
        if not batches or (len(batches[-1]) + 1) * lengths[row] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _length(
    asked: int | None, recorded: int | None, model: Any, tokenizer: Any, folder: Path
) -> int:
    """Return the max_length to use, checked against the positions that the model has."""
    positions = getattr(model.config, "max_position_embeddings", None)
    most = min(int(positions or tokenizer.model_max_length), int(tokenizer.model_max_length))
    if asked is None:
        return min(recorded or DEFAULT_MAX_LENGTH, most)
    if not 2 < asked <= most:
        raise ModelError(
            f"max_length {asked} does not suit {folder}: expected 3 to {most} tokens, as many as "
            "the model has positions. Lower max_length, or choose a model with more."
        )
    return asked
