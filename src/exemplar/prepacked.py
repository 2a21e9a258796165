"""Linear layers for inference on a CPU, their weights laid out once for oneDNN's matrix products.

PyTorch keeps a weight row by row and rearranges it within every product, in float32 with another
library than in bfloat16; under autocast it casts it every time too. A model that only reads text
can have all that done once. The layout is the one that PyTorch's own compiler gives a frozen model;
its operators have no public name. Figures: docs/decisions/034-prepacked-weights.md.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

from exemplar.devices import computes_bfloat16

_X86 = ("x86_64", "AMD64")
_ROWS = 1024  # for which oneDNN chooses the layout; any number of rows is computed in it


class PrepackedLinear(nn.Module):
    """A linear layer that computes in `dtype`: no gradients, no saving, no other device.

    What it is given it casts to `dtype`, as autocast does.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        weight = linear.weight.detach().to(dtype or linear.weight.dtype)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = weight.dtype
        self.bias = None if linear.bias is None else linear.bias.detach().to(self.dtype)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) row by row, copied at every call: some models look at its dtype."""
        weight: Tensor = self._packed.to_dense()
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (..., in) times the weight, plus the bias: (..., out)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.to(self.dtype), self._packed, self.bias, "none", [], ""
        )
        return product

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError("a prepacked layer is for inference; save the model as it was loaded")


def prepack(model: Any, dtype: torch.dtype | None = None) -> int:
    """Replace the linear layers of a transformers model; return how many, none where it cannot.

    `dtype`: what they compute in, for models that run under autocast; None: that of their weights.

    The vocabulary projection stays, for its weight is most often the embedding's too; so do layers
    of a class of their own. Needs an x86 processor, and one that computes in this dtype.
    """
    if not _suits(model.device, dtype or model.dtype):
        return 0
    head, done = model.get_output_embeddings(), dict[nn.Module, PrepackedLinear]()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                if child not in done:
                    done[child] = PrepackedLinear(child, dtype)
                    child.register_parameter("weight", None)  # or all would be held twice
                setattr(module, name, done[child])
    return len(done)


def _suits(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or platform.machine() not in _X86:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and computes_bfloat16(device))
