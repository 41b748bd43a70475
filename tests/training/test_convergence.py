"""Training in bf16 tracks float32 for up to 500 iterations on moving digits at small width."""

import itertools
import json
import statistics

import pytest
import torch
from training import convergence


def curves_of_reference():
    return torch.tensor(json.loads(convergence.CURVES.read_text()))


def test_the_curves_of_the_reference_are_those_of_different_runs():
    curves = curves_of_reference()
    assert curves.shape == (len(convergence.SEEDS), 2, convergence.ITERATIONS // convergence.WINDOW)
    assert all(convergence.distance(a, b) > 0.1 for a, b in itertools.combinations(curves, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "precision", "seeds", "iterations"),
    [
        # A CPU is slow in bf16.
        pytest.param("cpu", "bf16", [0], 200, id="cpu"),
        pytest.param("cuda", "bf16", convergence.SEEDS, convergence.ITERATIONS, id="gpu-bf16", marks=pytest.mark.gpu),
        pytest.param("cuda", "tf32", convergence.SEEDS, convergence.ITERATIONS, id="gpu-tf32", marks=pytest.mark.gpu),
    ],
)
def test_a_run_is_nearer_to_the_references_than_the_references_runs_with_other_seeds(
    device, precision, seeds, iterations
):
    """The limit is the median distance between all pairs of the reference's runs."""
    curves = curves_of_reference()[..., : iterations // convergence.WINDOW]
    spread = statistics.median(convergence.distance(a, b) for a, b in itertools.combinations(curves, 2))
    for seed in seeds:
        curve = convergence.curve_of_step(seed, device, iterations, precision=precision)
        assert convergence.distance(curve, curves[seed]) <= spread
