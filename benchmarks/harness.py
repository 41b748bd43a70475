"""Timing of contenders in turns, on inputs that are not in the cache, with events and CUDA graphs on a GPU."""

import gc
import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from tgan_fast import errors
from tgan_fast.cuda_graph import capture, empty_cache
from tgan_fast.errors import InputError
from tgan_fast.precision import Precision, resolve_precision

WITHOUT_GRAPH = "events without a CUDA graph"  # beginning of `Timing.method` without a graph
# Time of each contender in `measure`, and bounds of the number of rounds.
SECONDS = {"cpu": 0.5, "cuda": 0.1}
FEWEST_ROUNDS = 3
MOST_ROUNDS = {"cpu": 10, "cuda": 30}

_CPU_CACHE_BYTES = 32 << 20  # a common size of the last-level cache, which PyTorch does not report
_MOST_INPUT_SETS = 256  # if this many inputs fit the cache, real use reads them from it, too


class Timing(NamedTuple):
    """Seconds per call over all rounds, and how they were measured."""

    median: float
    p10: float
    p90: float
    method: str
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float], method: str) -> "Timing":
        """Return the timing of a call, given its seconds in each round."""
        # A single round has no spread.
        tenths = statistics.quantiles(rounds, n=10, method="inclusive") if len(rounds) > 1 else rounds
        return cls(statistics.median(rounds), tenths[0], tenths[-1], method, tuple(rounds))


def again(name: str) -> str:
    """Return the name under which `measure` times the first contender a second time."""
    return f"{name} again"


def measure(
    contenders: Mapping[str, Callable],
    input_sets: Sequence,
    device: str,
    rounds: int | None = None,
    *,
    prepare: Callable | None = None,
    uncaptured: Mapping[str, str] | None = None,
    warm: bool = False,
) -> dict[str, Timing]:
    """Time contenders in turns, so that a drift of the machine's speed affects all of them; the first one twice.

    In each round, in a random order, every contender runs once on each input set. On a GPU it replays a CUDA graph,
    timed by events; a contender that cannot be captured runs without a graph, and its `Timing.method` says why.

    Args:
        contenders: Functions of an input set, by name; their results are dropped.
        input_sets: Input sets, as many as `input_set_count` returns. For contenders that run backward on a GPU, forward
            must have run within `side_stream`.
        device: "cpu" or "cuda".
        rounds: Number of rounds; by default as many for each contender as fit `SECONDS`.
        prepare: Function called with every input set before a contender's turn, to restore tensors that contenders
            change.
        uncaptured: Reasons, by contender, for running without a CUDA graph. Contenders that cannot be captured must be
            named: after a failed capture none is captured in this process.
        warm: Whether the contenders have run before, so that a CPU need not run them untimed.
    """
    first = next(iter(contenders))
    contenders = {**contenders, again(first): contenders[first]}
    uncaptured = dict(uncaptured or {})
    uncaptured[again(first)] = uncaptured.get(first)

    def prepare_all():
        for inputs in input_sets if prepare else ():
            prepare(inputs)

    runs, methods, marks, on_gpu = {}, {}, defaultdict(list), device == "cuda"
    with side_stream(device):
        # All graphs share one pool: outputs are dropped, so replays may overwrite each other's.
        pool = torch.cuda.graph_pool_handle() if on_gpu else None
        for name, call in contenders.items():
            run = partial(_call_all, call, input_sets, device)
            if uncaptured.get(name) is None if on_gpu else not warm:
                prepare_all()
                run()  # compiles, loads libraries, takes memory
            runs[name], methods[name] = _replay(run, pool, uncaptured.get(name)) if on_gpu else (run, "perf_counter")
        counts = {name: rounds or _affordable(device, run, prepare_all) for name, run in runs.items()}
        # These runs are neither timed nor awaited: while a GPU executes them, the timed ones queue up without gaps.
        for run in runs.values() if on_gpu else ():
            prepare_all()
            run()
        for name in _turns(counts):
            prepare_all()
            marks[name].append(_marks_around(device, runs[name]))
    seconds = {name: [_seconds(*pair) / len(input_sets) for pair in marks[name]] for name in runs}
    return {name: Timing.of(seconds[name], methods[name]) for name in runs}


def input_set_count(nbytes: int, device: str) -> int:
    """Return how many input sets of `nbytes` together exceed twice the last cache, at least two."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else _CPU_CACHE_BYTES
    return min(_MOST_INPUT_SETS, max(2, math.ceil(2 * cache_bytes / nbytes)))


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """Work on the stream where `measure` captures, since backward runs on the stream of its forward."""
    if device == "cpu":
        yield
        return
    outer, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)


def precisions_for(device: str) -> list[Precision]:
    """Return all precisions of the device, its default first; for a CPU only the default."""
    found = []
    for name in ("auto", "bf16", "tf32", "fp32") if device == "cuda" else ("auto",):
        with suppress(InputError):
            found.append(resolve_precision(name, torch.device(device)))
    return list(dict.fromkeys(found))


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak GPU memory while `run` runs, beyond the memory in use before."""
    gc.collect()
    empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def short_reason(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return errors.first_line(error)[:200]


def _call_all(call, input_sets, device):
    # On a GPU all outputs live until the last call, so that none overwrites another one that is still in the cache.
    deque(map(call, input_sets), maxlen=None if device == "cuda" else 0)


def _replay(run, pool, why_not):
    """Return the replay of a graph of a run, or the run itself, and the method's name."""
    if why_not is None:
        try:
            graph, _ = capture(run, torch.cuda.current_stream(), pool)
        except RuntimeError as error:
            why_not = short_reason(error)
        else:
            return graph.replay, "replays of a CUDA graph"
    return run, f"{WITHOUT_GRAPH}: {why_not}"


def _affordable(device, run, prepare_all):
    # On a GPU, the first run of a graph or of a call still loads modules.
    for _ in range(2 if device == "cuda" else 1):
        prepare_all()
        marks = _marks_around(device, run)
    return min(MOST_ROUNDS[device], max(FEWEST_ROUNDS, int(SECONDS[device] / max(_seconds(*marks), 1e-9))))


def _marks_around(device, run):
    """Return the times before and after a run on a CPU, or a GPU's events."""
    if device == "cpu":
        begin = time.perf_counter()
        run()
        return begin, time.perf_counter()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    return begin, end


def _seconds(begin, end):
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _turns(rounds):
    # The order changes, since a contender may find the cache as the previous one left it.
    order, most = random.Random(0), max(rounds.values())
    for index in range(most):
        names = [name for name, count in rounds.items() if index * count % most < count]
        yield from order.sample(names, len(names))


@cache
def _stream():
    return torch.cuda.Stream()
