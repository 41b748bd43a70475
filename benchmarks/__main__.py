"""Run all benchmarks and render their tables and pictures: `python -m benchmarks`."""

from benchmarks import render, suite
from benchmarks.sections import SECTIONS

suite.main(*SECTIONS, finish=render.write_texts)
