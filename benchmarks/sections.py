"""All sections of benchmarks, in the order in which they are run and reported."""

from benchmarks import (
    bench_batch_norm_act,
    bench_convolutions,
    bench_data,
    bench_metrics,
    bench_optimizer,
    bench_sampling,
    bench_singular_value_clip,
    bench_startup,
    bench_step,
    bench_videos,
    breakdown,
)
from benchmarks.suite import Section

SECTIONS: tuple[Section, ...] = (
    bench_step.SECTION,
    breakdown.SECTION,
    bench_batch_norm_act.SECTION,
    bench_singular_value_clip.SECTION,
    bench_convolutions.SECTION,
    bench_optimizer.SECTION,
    bench_sampling.SECTION,
    bench_data.SECTION,
    bench_videos.SECTION,
    bench_metrics.SECTION,
    bench_startup.SECTION,
)
