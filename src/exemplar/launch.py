"""Training in several processes, one a GPU: starting them, and joining them.

A training step calls `join` and learns whether torchrun started it. `torchrun` starts a step that
way from Python, as the command line does with --processes and a pod with several GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from exemplar.errors import ConfigError, ExemplarError, TrainingError

if TYPE_CHECKING:
    from exemplar.training.ranks import Ranks

STEPS = ("reward_training", "kd_training")
"""What can run in several processes."""

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up. torchrun ends it sooner if one died."""


def rank() -> int | None:
    """Return this process's rank where torchrun started it, else None."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def refuse_copies(step: str) -> None:
    """Raise `ConfigError` where torchrun started a step that is made for one process."""
    if rank() is not None and step not in STEPS:
        raise ConfigError(
            f"{step} runs in one process; torchrun would start copies of it that write the same "
            f"files. Start it without torchrun. With it: {', '.join(STEPS)}."
        )


@contextmanager
def join() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, each with a GPU of its own if any.

    Without torchrun there is one process. Collectives run through NCCL between GPUs and through
    gloo between CPUs. Inside another `join` the group is that one's: a process cannot join twice in
    a row, for the second group would find the addresses that the first one left behind. Raises
    `ConfigError` where there are more processes than GPUs.
    """
    import torch
    from torch import distributed

    from exemplar.training.ranks import ALONE, Ranks

    if rank() is None:
        yield ALONE
        return
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    backend = "gloo"
    if torch.cuda.is_available():
        place, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= num_gpus:
            raise ConfigError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes here, and this "
                f"machine shows {num_gpus} GPUs: expected one each. Lower --nproc-per-node."
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"  # figures and checkpoints travel by way of the CPU
    distributed.init_process_group(backend, timeout=TIMEOUT)
    yield Ranks(distributed.get_rank(), distributed.get_world_size())
    # Not after an error: the process is about to end, and closing would wait for the others.
    distributed.destroy_process_group()


def torchrun(
    function: Callable[..., Any], *arguments: Any, processes: int | None = None, **named: Any
) -> Any:
    """Call a function in several processes on this machine and return what rank 0 returned.

    `processes`: None for one a GPU; with one, or where torchrun started this process, the function
    is simply called. It must be importable, its arguments must pickle. As soon as one process
    fails, all are ended: `TrainingError` after an error that the user can mend, whose message that
    process has printed, otherwise torch's ChildFailedError.
    """
    if processes is None:
        import torch

        processes = max(1, torch.cuda.device_count())
    if processes == 1 or rank() is not None:
        return function(*arguments, **named)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # whoever started the step repeats it, and it goes on from its checkpoint
        monitor_interval=0.1,
    )
    try:
        return elastic_launch(config, call_or_exit)(function, arguments, named)[0]
    except ChildFailedError as error:
        first, failure = error.get_first_failure()
        if failure.exitcode != 2:
            raise
        raise TrainingError(
            f"process {first} of {processes} stopped, and the others were ended: its message "
            "stands above."
        ) from None


def call_or_exit(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Call the function; a user's error is one message and exit code 2, as in `cli.main`."""
    try:
        return function(*arguments, **named)
    except ExemplarError as error:
        sys.stderr.write(f"rank {rank()}: error: {error}\n")
        sys.exit(2)
