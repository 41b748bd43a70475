"""Resampling in time, compared with the definition tick by tick."""

import numpy as np
import pytest

from tgan_fast.preparation.decoding.resample import ROUNDING, resampled


def by_definition(times, durations, fps):
    """Return the number of the frame that is shown at every tick, searched anew for each tick."""
    times = np.array(times) - times[0] - ROUNDING
    shown, k = [], 0
    while k == 0 or k / fps < times[-1] + durations[-1]:
        shown.append(int(np.flatnonzero(times <= k / fps)[-1]))
        k += 1
    return shown


def taken(times, durations, fps):
    return list(resampled(zip(range(len(times)), times, durations, strict=True), fps))


@pytest.mark.parametrize("fps", [0.7, 1, 8, 10, 23.976, 25, 29.97, 60, 120])
@pytest.mark.parametrize("seed", range(5))
def test_of_any_times_the_frame_is_taken_that_is_shown_at_a_tick(fps, seed):
    durations = np.random.default_rng(seed).gamma(1.5, 0.03, 200).tolist()
    times = (7.3 + np.cumsum([0, *durations[:-1]])).tolist()
    assert taken(times, durations, fps) == by_definition(times, durations, fps)


@pytest.mark.parametrize("rate", [8, 10, 12.5, 15, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60])
def test_the_video_s_own_rate_takes_every_frame_once(rate):
    exact = [k / rate for k in range(1000)]
    for times in (exact, np.round(exact, 3).tolist(), (np.floor(np.array(exact) * 90_000) / 90_000).tolist()):
        assert taken(times, [1 / rate] * 1000, rate) == list(range(1000))


@pytest.mark.parametrize(("rate", "fps"), [(25, 10), (30, 25), (60, 8), (8, 60), (24, 30), (29.97, 25)])
def test_a_video_of_d_seconds_has_d_times_fps_frames(rate, fps):
    times = [k / rate for k in range(3 * 240)]
    assert len(taken(times, [1 / rate] * len(times), fps)) == pytest.approx(3 * 240 / rate * fps, abs=1)
    assert taken(times, [1 / rate] * len(times), fps) == by_definition(times, [1 / rate] * len(times), fps)


def test_ten_of_25_frames_are_every_second_and_third():
    assert taken([k / 25 for k in range(25)], [1 / 25] * 25, 10) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]


def test_a_frame_that_is_shown_for_long_is_repeated_the_last_one_too():
    assert taken([0, 0.1, 50.1], [0.1, 50, 2], 10) == [0, *[1] * 500, *[2] * 20]


def test_no_damaged_duration_fills_the_disk():
    assert taken([0, 0.1], [0.1, 1e9], 10) == [0, *[1] * 600]
    assert len(taken([None] * 5, [1e9] * 5, 10)) == 5 * 600


@pytest.mark.parametrize("duration", [0.0, 0.04, 1e-5])
def test_a_single_frame_is_taken_once(duration):
    assert taken([3.0], [duration], 10) == [0]


def test_nothing_gives_nothing():
    assert taken([], [], 10) == []


def test_frames_without_times_follow_one_another():
    assert taken([None] * 50, [0.04] * 50, 12.5) == list(range(0, 50, 2))
    assert taken([1.0, None, None, 1.12, None], [0.04] * 5, 25) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("second", [0.0, 1e5, -1e5, 95_443.7])
def test_where_recordings_are_joined_neither_pauses_nor_losses_arise(second):
    times = [start + k / 25 for start in (0, second, second - 500, 3) for k in range(50)]
    assert taken(times, [1 / 25] * 200, 25) == list(range(200))


def test_durations_count_only_at_the_end():
    """MP4 with reordered frames gives a pause's duration to another frame than the one that is shown."""
    times = [k / 25 + (10 if k >= 25 else 0) for k in range(50)]
    durations = [1 / 25] * 50
    durations[26] = 10
    assert taken(times, durations, 25) == [*range(24), *[24] * 251, *range(25, 50)]


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_neighbors_that_have_each_other_s_times_are_put_in_order(reach):
    places = np.argsort(np.arange(200) + np.random.default_rng(reach).uniform(0, reach, 200), kind="stable")
    assert reach == 1 or (np.diff(places) < 0).any()
    times = [3 + place / 25 for place in places]
    assert taken(times, [1 / 25] * 200, 25) == list(range(200))
    assert taken(times, [1 / 25] * 200, 12.5) == list(range(0, 200, 2))


def test_times_that_go_back_farther_do_not_lose_count():
    times = [k / 25 for k in range(50)]
    times[30] = 0.5
    chosen = taken(times, [0.04] * 50, 25)
    assert len(chosen) == 50
    assert chosen == sorted(chosen)
