"""What is stored of a video."""

import pickle

import pytest

from tgan_fast.preparation.decoding import Form


def test_a_form_reaches_other_processes():
    form = Form(64, 85, 3, stride=2, fps=12.5)
    assert pickle.loads(pickle.dumps(form)) == form
    assert form.shape == (64, 85, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 64, 3), "at least one pixel, not 0 rows of 64"),
        ((64, -1, 3), "at least one pixel, not 64 rows of -1"),
        ((64, 64, 2), "1 or 3 channels, not 2"),
        ((64, 64, 3, 0), "at least 1, not 0"),
        ((64, 64, 3, 1, 0), "more than 0, not 0"),
        ((64, 64, 3, 1, float("nan")), "more than 0, not nan"),
        ((64, 64, 3, 1, float("inf")), "more than 0, not inf"),
    ],
)
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Form(*values)
