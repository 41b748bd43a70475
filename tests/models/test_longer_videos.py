"""Videos of other lengths than the generator was trained with."""

import copy
import math

import pytest
import torch
from support.generators import as_if_trained_

from tgan_fast import VideoGenerator
from tgan_fast.models import FrameGenerator, GRUTemporalGenerator, LSTMTemporalGenerator
from tgan_fast.models.sampling import Sampler, draw_inputs, draw_latents, sample_videos
from tgan_fast.pixels import to_clips

T = 8
KINDS = {
    "deconv": (VideoGenerator, {}),
    "deconv-frame-classes": (FrameGenerator, {"classes": 3}),
    "deconv-sixteen-frames": (VideoGenerator, {"clip_frames": 16, "classes": 2}),
    "gru-classes": (VideoGenerator, {"temporal": GRUTemporalGenerator, "classes": 3}),
    "lstm": (FrameGenerator, {"temporal": LSTMTemporalGenerator}),
}


@pytest.fixture(params=KINDS)
def generator(request):
    network, options = KINDS[request.param]
    generator = network(0.0625, 6, **{"clip_frames": T, "image_size": 16, **options}).double()
    return as_if_trained_(generator, draw_inputs(generator, 16, seed=1).double()).eval()


def frames_of(generator, inputs, length, interpolate=1):
    with torch.no_grad():
        return generator.frames(inputs, interpolate, length).unflatten(0, (len(inputs), -1))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 128])
def test_a_video_begins_with_the_frames_of_its_first_window(generator, length):
    inputs = draw_inputs(generator, 3, 5, length).double()
    usual = draw_inputs(generator, 3, 5).double()
    trained, windows = generator.clip_frames, generator.windows(length)
    frames = frames_of(generator, inputs, length)
    assert frames.shape[:2] == (3, length)
    # The last quarter of a window fades into the next one.
    same = min(length, trained if windows == 1 else trained - trained // 4)
    torch.testing.assert_close(frames[:, :same], frames_of(generator, usual, None)[:, :same], rtol=0, atol=1e-12)
    if generator.windows(128) == 1:
        longer = frames_of(generator, usual, length + 5)
        torch.testing.assert_close(frames, longer[:, :length], rtol=0, atol=1e-12)


def test_windows_fade_into_each_other_and_keep_the_content():
    generator = VideoGenerator(0.0625, 6, clip_frames=T, image_size=16).double().eval()
    z = draw_inputs(generator, 2, 0, 20).double()
    assert z.shape == (2, generator.windows(20), 6) == (2, 3, 6)
    with torch.no_grad():
        windows = [generator.temp(z[:, number]) for number in range(3)]
    latents = torch.zeros(2, 20, 6, dtype=torch.float64)
    for frame in range(20):
        for number, window in enumerate(windows):
            place = frame - 6 * number
            if not 0 <= place < T:
                continue
            weight = 1.0
            if place < 2 and number > 0:
                weight = (1 - math.cos(math.pi * (place + 1) / 3)) / 2
            elif place >= 6 and number < 2:
                weight = (1 + math.cos(math.pi * (place - 5) / 3)) / 2
            latents[:, frame] += weight * window[:, place]
    with torch.no_grad():
        expected = generator.images(z[:, 0], latents)
    torch.testing.assert_close(generator.frames(z, length=20), expected, rtol=1e-12, atol=1e-12)


def test_the_number_of_windows_is_the_smallest_that_is_long_enough():
    temporal = VideoGenerator(0.0625, 6, clip_frames=T, image_size=16).temp
    for frames in range(1, 40):
        windows = temporal.windows(frames)
        assert T + 6 * (windows - 1) >= frames
        assert windows == 1 or T + 6 * (windows - 2) < frames


def test_samplers_make_the_same_videos(generator):
    for length, interpolate in ((20, 1), (20, 3), (3, 2)):
        inputs = draw_inputs(generator, 3, 2, length).double()
        frames = frames_of(generator, inputs, length, interpolate)
        clips = Sampler(generator, frames=length, interpolate=interpolate)(inputs)
        assert clips.shape[:2] == (3, length * interpolate)
        expected = to_clips(frames.tanh().transpose(1, 2))
        # Folding rounds differently, so a value in the middle of two levels may become either.
        assert (clips.int() - expected.int()).abs().max() <= 1
        videos = sample_videos(generator, inputs, frames=length, interpolate=interpolate)
        torch.testing.assert_close(videos, frames.tanh().transpose(1, 2), rtol=0, atol=1e-12)


def test_batch_statistics_are_those_of_all_windows():
    generator = VideoGenerator(0.0625, 6, clip_frames=T, image_size=16)
    before = copy.deepcopy(generator.state_dict())
    videos = sample_videos(generator, draw_inputs(generator, 4, 0, 30), frames=30, batch_statistics=True)
    assert videos.shape == (4, 3, 30, 16, 16)
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)


def test_the_first_latents_do_not_depend_on_the_length():
    short, long = (draw_latents(3, 5, 7, windows=windows) for windows in (2, 9))
    assert torch.equal(long[:, :2], short)
    assert torch.equal(short[:, 0], draw_latents(3, 5, 7))
    limited = draw_latents(3, 5, 7, windows=2, truncation=0.25)
    torch.testing.assert_close(limited, short / 4)


def test_longer_videos_come_in_smaller_batches():
    generator = VideoGenerator(0.0625, 6, clip_frames=T, image_size=16)
    assert [Sampler(generator, frames=frames).batch_size for frames in (None, 8, 16, 1000)] == [2, 2, 1, 1]


def test_inputs_of_another_length_are_refused():
    generator = VideoGenerator(0.0625, 6, clip_frames=T, image_size=16, classes=2)
    with pytest.raises(ValueError, match=r"takes latents and one-hot labels \[N, 3, 8\] and got \[2, 8\]"):
        generator.frames(draw_inputs(generator, 2, 0), length=20)
    with pytest.raises(ValueError, match=r"takes latents and one-hot labels \[N, 8\] and got \[2, 3, 8\]"):
        generator.frames(draw_inputs(generator, 2, 0, 20))
    with pytest.raises(ValueError, match="frames must be at least 1, and is 0"):
        Sampler(generator, frames=0)
