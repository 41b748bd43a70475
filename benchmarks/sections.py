"""List of all benchmark sections, in the order in which they run and are reported."""

from importlib import import_module

from benchmarks.suite import Section

_MODULES = (
    "bench_step",
    "breakdown",
    "bench_batch_norm_act",
    "bench_singular_value_clip",
    "bench_convolutions",
    "bench_optimizer",
    "bench_sampling",
    "bench_data",
    "bench_videos",
    "bench_metrics",
    "bench_startup",
)
SECTIONS: tuple[Section, ...] = tuple(import_module(f"benchmarks.{name}").SECTION for name in _MODULES)
