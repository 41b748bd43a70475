"""Two processes on a CPU, joined by gloo: functions of a module, or a program that torchrun starts."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def outcomes_of_two(outcome: Callable[[int], Any], folder: Path) -> list:
    """Return the results of `outcome(rank)`, a function of a module, in two processes that leave files in `folder`."""
    mp.spawn(_process, (outcome, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def torchrun(program: list, *arguments) -> subprocess.CompletedProcess:
    """Run a program, such as ["-m", "tgan_fast"], in two processes of torchrun with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [*program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _process(rank, outcome, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(outcome(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
    # All references to the group must be dropped before Python ends, or gloo's threads abort the process.
    gc.collect()
