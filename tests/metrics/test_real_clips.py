"""Choice of real clips, and their fingerprint."""

import numpy as np
import pytest
import torch

from tgan_fast.data import MovingDigits, PreparedVideos, VideoFrames
from tgan_fast.metrics.real_clips import distinct_clips, draw_clips, fingerprint_of


def videos_of(lengths=(16, 20, 40), *, checksum=None, **options):
    """Videos whose frames have the number of the video in the first channel, of the frame in the second."""
    frames = np.zeros((sum(lengths), 64, 64, 3), np.uint8)
    first = np.cumsum(lengths) - lengths
    for video, (start, length) in enumerate(zip(first, lengths, strict=True)):
        frames[start : start + length, ..., 0] = video
        frames[start : start + length, ..., 1] = np.arange(length)[:, None, None]
    videos = PreparedVideos(frames, first, lengths, 10 * np.arange(len(lengths)), checksum=checksum)
    return VideoFrames(videos, **options)


def drawn(dataset, count, **options):
    parts = list(draw_clips(dataset, count, **{"seed": 0, "batch_size": 4} | options))
    assert [len(clips) for clips, _ in parts[:-1]] == [4] * (len(parts) - 1)
    return (torch.cat(tensors) for tensors in zip(*parts, strict=True))


def test_every_clip_comes_once_before_any_comes_again():
    clips, labels = drawn(videos_of(), 8)
    assert (clips.shape, clips.dtype, labels.dtype) == ((8, 16, 64, 64, 3), torch.uint8, torch.int64)
    videos = clips[:, 0, 0, 0, 0].tolist()
    assert sorted(videos[:3]) == sorted(videos[3:6]) == [0, 1, 2]
    assert labels.tolist() == [10 * video for video in videos]


def test_a_video_comes_each_time_from_another_start():
    clips, _ = drawn(videos_of([200]), 20)
    starts = clips[:, 0, 0, 0, 1].tolist()
    assert len(set(starts)) > 10
    assert torch.equal(clips[:, :, 0, 0, 1], torch.tensor(starts)[:, None] + torch.arange(16))


def test_the_draw_is_a_function_of_the_seed():
    digits = MovingDigits(50)
    first, again, other = (next(drawn(digits, 10, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labels_of_windows_are_those_of_their_videos():
    clips, labels = drawn(videos_of(weighting="windows"), 31)
    assert labels.tolist() == [10 * video for video in clips[:, 0, 0, 0, 0].tolist()]
    assert len({tuple(key) for key in clips[:, 0, 0, 0, :2].tolist()}) == 31


@pytest.mark.parametrize(("clip_frames", "size"), [(8, 16), (32, 32)])
def test_clips_of_other_sizes_are_drawn_as_they_are(clip_frames, size):
    options = {"clip_frames": clip_frames, "image_size": size}
    clips, labels = drawn(videos_of((32, 40, 64), **options), 9)
    assert (clips.shape, clips.dtype) == ((9, clip_frames, size, size, 3), torch.uint8)
    assert labels.tolist() == [10 * video for video in clips[:, 0, 0, 0, 0].tolist()]
    assert torch.equal(clips[:, :, 0, 0, 1], clips[:, :1, 0, 0, 1] + torch.arange(clip_frames))
    digits = MovingDigits(5, **options)
    clips, labels = drawn(digits, 5)
    assert sorted(clip.numpy().tobytes() for clip in clips) == sorted(digits[i][0].tobytes() for i in range(5))
    assert sorted(labels.tolist()) == sorted(digits[i][1] for i in range(5))


def test_how_many_clips_there_are():
    assert distinct_clips(videos_of([16, 20])) == 1 + 5
    assert distinct_clips(MovingDigits(70)) == 70


DIFFERENT = [
    lambda: MovingDigits(50),
    lambda: MovingDigits(51),
    lambda: MovingDigits(50, seed=1),
    lambda: MovingDigits(50, digits=2),
    lambda: MovingDigits(50, clip_frames=8),
    lambda: MovingDigits(50, image_size=32),
    lambda: MovingDigits(50, digit_size=0.75),
    lambda: MovingDigits(50, digit_speed=0.0),
    lambda: MovingDigits(50, scans=tuple(part[:1000] for part in MovingDigits(1).scans)),
    lambda: videos_of(),
    lambda: videos_of(lengths=(16, 21, 39)),
    lambda: videos_of(flip=True),
    lambda: videos_of(crop="random"),
    lambda: videos_of(weighting="windows"),
    lambda: videos_of(last_start=False),
    lambda: videos_of(clip_frames=8),
    lambda: videos_of(image_size=32),
]


def test_fingerprints_tell_apart_what_differs_and_nothing_else():
    fingerprints = [fingerprint_of(make()) for make in DIFFERENT]
    assert len(set(fingerprints)) == len(DIFFERENT)
    assert fingerprints == [fingerprint_of(make()) for make in DIFFERENT]


def test_the_fingerprint_of_the_papers_digits_is_that_of_earlier_versions():
    images = (np.arange(20 * 28 * 28) % 251).astype(np.uint8).reshape(20, 28, 28)
    digits = MovingDigits(50, scans=(images, np.arange(20) % 10))
    assert fingerprint_of(digits) == "5fd57414bc922339cac3afbd096b7c7e9330192ca0b3ba81ea078e86c9c6b3d9"


def test_a_checksum_stands_for_the_frames_it_is_of():
    videos = videos_of(checksum="1234")
    known = fingerprint_of(videos)
    videos.frames[50, 60, 60, 2] += 1
    assert fingerprint_of(videos) == known
    others = [videos_of(checksum="5678"), videos_of(checksum="1234", flip=True), videos_of()]
    assert known not in map(fingerprint_of, others)


def test_one_changed_byte_of_a_frame_changes_the_fingerprint():
    videos, changed = videos_of(), videos_of()
    changed.frames[50, 60, 60, 2] += 1
    assert fingerprint_of(videos) != fingerprint_of(changed)


@pytest.mark.parametrize("kind", [type("Derived", (MovingDigits,), {}), type("Clips", (), {})])
def test_a_data_set_of_others_has_no_fingerprint(kind):
    assert fingerprint_of(kind()) is None
