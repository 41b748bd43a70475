"""Combinations of values that contain every pair of values that fit each other: far fewer than all combinations."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

# Number of random rows around a pair; the one with most new pairs is used.
_TRIES = 40

Row = dict[str, Any]


def covering(values: Mapping[str, Sequence], fits: Callable[[Row], bool]) -> list[Row]:
    """Rows with a value for every name that cover all pairs of values that fit; the same in every process.

    If no random row around a pair fits, the pair is assumed not to fit.
    """
    chance, rows, covered = random.Random(0), [], set()
    for pair in _pairs_of_values(values):
        if pair not in covered:
            tries = ({name: chance.choice(of_name) for name, of_name in values.items()} for _ in range(_TRIES))
            found = [row for row in ({**row, **dict(_named(values, pair))} for row in tries) if fits(row)]
            if found:
                rows.append(max(found, key=lambda row: len(_pairs(values, row) - covered)))
                covered |= _pairs(values, rows[-1])
    return rows


def _pairs_of_values(values):
    """Return pairs as ((name, index of a value), (name, index of a value)), since values need not be hashable."""
    for first, second in combinations(values, 2):
        for a in range(len(values[first])):
            yield from (((first, a), (second, b)) for b in range(len(values[second])))


def _named(values, pair):
    return [(name, values[name][index]) for name, index in pair]


def _pairs(values, row):
    return set(combinations([(name, values[name].index(value)) for name, value in row.items()], 2))
