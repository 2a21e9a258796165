"""Several processes that train one model, each a rank of a process group.

The batch of an update is that of one process. Each rank embeds a share of its texts; what came out
is gathered, with gradient; every rank computes the loss of the whole batch, and the gradients that
the shares gave are summed. So losses and gradients are those of one process up to rounding, whether
or not the batch divides evenly: nothing is averaged over ranks.

Shapes: n rows in all, S rows a share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from exemplar.errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default, and then nothing is sent.

    With `size` above 1 the default process group of torch.distributed must be there. All methods
    but `share` are collectives: every rank calls them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    @property
    def draw(self) -> tuple[int, ...]:
        """What completes the seed of a draw that must differ from rank to rank, as dropout's.

        The first rank draws as one process does.
        """
        return () if self.is_first else (self.rank,)

    def share(self, items: Sequence[T]) -> list[T]:
        """Deal out items, one or more, like cards, and return what falls to this rank.

        Sorted by length they make shares of like work, sorted too. All shares are of equal size:
        where they do not come out even, the last item is dealt again, and `gather` drops it.
        """
        rows = -(-len(items) // self.size)
        return [items[min(self.rank + i * self.size, len(items) - 1)] for i in range(rows)]

    def gather(self, share: Tensor, n: int) -> Tensor:
        """Put the rows of all shares (S, ...) back into the order of the n items dealt (n, ...).

        Scale of the gradient: the backward pass keeps this rank's own rows of the gradient, times
        one, and sends nothing. That is right because every rank computes the same loss from the
        gathered rows; `sum_gradients` then adds up what the shares give to each weight. (The
        all_gather of torch.distributed.nn sums that gradient over the ranks, for losses that
        differ between them: here each gradient would come out `size` times too large.)
        """
        if self.size == 1:
            return share
        rows: Tensor = _Gather.apply(share, self.rank, self.size)  # type: ignore[no-untyped-call]
        return rows[:n]

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace each weight's gradient by its sum over the ranks, equal to the bit on all."""
        if self.size == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        sums = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))

    def from_first(self, value: T) -> T:
        """Return the first rank's value, which may be anything that pickles, on every rank."""
        if self.size == 1:
            return value
        sent: list[Any] = [value if self.is_first else None]
        distributed.broadcast_object_list(sent, src=0)
        received: T = sent[0]
        return received

    def copy_from_first(self, model: nn.Module) -> None:
        """Give every rank the first one's weights."""
        if self.size > 1:
            for value in model.state_dict().values():  # detached, and the model's own memory
                distributed.broadcast(value, src=0)

    def require_same(self, identity: str) -> None:
        """Raise `TrainingError` unless all ranks are about to do the same.

        Without this, a node with other files would train on them and nobody would see it.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, identity)
        others = [rank for rank in range(self.size) if found[rank] != found[0]]
        if others:
            raise TrainingError(
                f"{len(others)} of {self.size} processes read other data or settings than the "
                f"first: rank {', '.join(map(str, others))}. Expected the same files on every "
                "node. Copy data and params.yaml of the first node to the others."
            )


ALONE = Ranks()
"""One process."""


class _Gather(torch.autograd.Function):
    """Rows of all ranks, dealt like cards; see `Ranks.gather`."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        parts = [torch.empty_like(share) for _ in range(size)]
        distributed.all_gather(parts, share.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rank :: ctx.size], None, None
