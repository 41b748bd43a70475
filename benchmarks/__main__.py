"""All benchmarks: `python -m benchmarks`; afterwards the tables and pictures are made anew."""

from benchmarks import render, suite
from benchmarks.sections import SECTIONS

suite.main(*SECTIONS, finish=render.write_texts)
