"""More frames of the same motion; and every kind of generator, folded or sampled from, is the generator itself."""

import copy

import numpy as np
import pytest
import torch
from support.generators import as_if_trained_

from tgan_fast import VideoGenerator
from tgan_fast.models import FrameGenerator, GRUTemporalGenerator, LSTMTemporalGenerator
from tgan_fast.models.folding import FoldedGenerator
from tgan_fast.models.sampling import Sampler, draw_inputs, sample_videos

WIDTH, LATENT, FRAMES, IMAGE_SIZE = 0.0625, 6, 8, 16
# Error of (tanh + 1)·127.5 in float64 if the frames before it were rounded to float32.
ROUNDING = 1e-4
GRU, LSTM = {"temporal": GRUTemporalGenerator}, {"temporal": LSTMTemporalGenerator}
# Every pair of image generator, temporal generator and classes.
KINDS = {
    "video": (VideoGenerator, {}),
    "video-gru-classes": (VideoGenerator, {**GRU, "classes": 3}),
    "video-lstm-nine-frames": (VideoGenerator, {**LSTM, "clip_frames": 9}),
    "frame-classes": (FrameGenerator, {"classes": 3}),
    "frame-gru": (FrameGenerator, GRU),
    "frame-lstm-classes": (FrameGenerator, {**LSTM, "classes": 3}),
}


def trained(kind, device="cpu"):
    """Return a float64 generator in training mode: batch norms have an effect, videos contain most levels."""
    network, options = KINDS[kind]
    generator = network(WIDTH, LATENT, **{"clip_frames": FRAMES, "image_size": IMAGE_SIZE, **options}).double()
    return as_if_trained_(generator, draw_inputs(generator, 16, seed=1).double()).to(device)


def inputs_of(generator, count, seed=0):
    return draw_inputs(generator, count, seed).to(next(generator.parameters()))


def itself(generator, inputs, interpolate=1):
    """Return the generator's own frames in evaluation mode."""
    with torch.no_grad():
        return copy.deepcopy(generator).eval().frames(inputs, interpolate)


@pytest.fixture(params=KINDS)
def generator(request, device):
    return trained(request.param, device)


def test_frame_latents_are_interpolated_over_time(generator):
    """Interpolate by NumPy between the first and the last one, which stay."""
    inputs, frames = inputs_of(generator, 3), generator.clip_frames
    uninterpolated = itself(generator, inputs)
    assert torch.equal(itself(generator, inputs, 1), uninterpolated)
    uninterpolated = uninterpolated.unflatten(0, (3, -1))
    with torch.no_grad():
        latents = copy.deepcopy(generator).eval().temp(inputs).cpu().numpy()
    for interpolate in (2, 3, 7):
        got = itself(generator, inputs, interpolate)
        assert got.shape == (3 * frames * interpolate, 3, IMAGE_SIZE, IMAGE_SIZE)
        times = np.linspace(0, frames - 1, frames * interpolate)
        curves = [[np.interp(times, np.arange(frames), curve) for curve in video.T] for video in latents]
        with torch.no_grad():
            curves = torch.from_numpy(np.array(curves)).to(inputs).transpose(1, 2)
            expected = copy.deepcopy(generator).eval().images(inputs, curves)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        got = got.unflatten(0, (3, -1))
        for end in (0, -1):
            torch.testing.assert_close(got[:, end], uninterpolated[:, end], rtol=1e-10, atol=1e-10)
        # There is motion to be interpolated.
        assert got.diff(dim=1).abs().amax((1, 2, 3, 4)).min() > 1e-4


def test_gradients_flow_through_interpolated_frames(generator):
    inputs = inputs_of(generator, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(generator.frames(inputs, 3).square().sum(), inputs)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).all()


def test_clips_and_videos_of_a_sampler_are_those_of_the_frames(generator):
    inputs = inputs_of(generator, 5)
    for interpolate in (1, 3):
        frames = generator.clip_frames * interpolate
        expected = itself(generator, inputs, interpolate).tanh().unflatten(0, (5, frames)).transpose(1, 2)
        clips = Sampler(generator, batch_size=2, precision="fp32", interpolate=interpolate)(inputs)
        assert clips.dtype == torch.uint8
        assert clips.shape == (5, frames, IMAGE_SIZE, IMAGE_SIZE, 3)
        levels = ((expected + 1) * 127.5).movedim(1, -1).cpu()
        assert (clips.double() - levels).abs().max() <= 0.5 + ROUNDING
        assert len(clips.unique()) > 100

        sampler = Sampler(generator, batch_size=2, precision="fp32", interpolate=interpolate, output="videos")
        videos = torch.cat(list(sampler.on_device(inputs)))
        torch.testing.assert_close(videos.double(), expected, rtol=0, atol=1e-6)
        # The generator's own sampling, too, which does not replace batch norms.
        videos = sample_videos(generator, inputs, batch_size=2, interpolate=interpolate)
        torch.testing.assert_close(videos, expected.cpu(), rtol=1e-10, atol=1e-10)


def change_all_weights_(generator):
    """Change all weights and running statistics, as a training step does."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1 + 0.5 * torch.rand_like(parameter)).add_(0.05)
        for name, buffer in generator.named_buffers():
            if "running" in name:
                buffer.mul_(1.5).add_(0.01)


def test_a_folded_generator_is_the_generator_in_evaluation_mode(generator):
    inputs = inputs_of(generator, 3)
    folded = FoldedGenerator(generator, torch.float64)
    before = {times: folded.frames(inputs, times) for times in (1, 3)}
    for times, frames in before.items():
        torch.testing.assert_close(frames, itself(generator, inputs, times), rtol=1e-10, atol=1e-11)

    change_all_weights_(generator)
    assert all(torch.equal(folded.frames(inputs, times), frames) for times, frames in before.items())
    folded.refresh()
    for times, frames in before.items():
        expected = itself(generator, inputs, times)
        torch.testing.assert_close(folded.frames(inputs, times), expected, rtol=1e-10, atol=1e-11)
        assert (expected - frames).norm() > 0.1 * frames.norm()


def test_every_weight_of_a_folded_generator_is_refreshed(generator):
    """Change one weight at a time, so that no forgotten one is overlooked."""
    inputs = inputs_of(generator, 3)
    folded = FoldedGenerator(generator, torch.float64)
    for name, parameter in generator.named_parameters():
        before = folded.frames(inputs)
        with torch.no_grad():
            parameter.add_(0.1 * parameter.abs().max() * torch.randn_like(parameter) + 0.01)
        folded.refresh()
        got = folded.frames(inputs)
        assert (got - before).abs().max() > 1e-9, name
        torch.testing.assert_close(got, itself(generator, inputs), rtol=1e-9, atol=1e-10, msg=name)


def test_a_sampler_takes_over_what_the_generator_has_now(device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    generator = trained("video-gru-classes", device)
    inputs = inputs_of(generator, 3)
    sampler = Sampler(generator, precision="fp32", interpolate=3, output="videos")
    before = torch.cat(list(sampler.on_device(inputs)))
    change_all_weights_(generator)
    assert torch.equal(torch.cat(list(sampler.on_device(inputs))), before)
    sampler.refresh()
    videos = torch.cat(list(sampler.on_device(inputs)))
    expected = itself(generator, inputs, 3).tanh().unflatten(0, (3, -1)).transpose(1, 2)
    torch.testing.assert_close(videos.double(), expected, rtol=0, atol=1e-6)
    assert (videos - before).abs().max() > 0.1


def test_folding_leaves_the_generator_as_it_is(generator):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    modes = [module.training for module in generator.modules()]
    inputs = inputs_of(generator, 3)
    folded = FoldedGenerator(generator, torch.bfloat16)
    assert not folded.frames(inputs, 2).requires_grad
    folded.refresh()
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in generator.modules()] == modes
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float64}


def test_a_folded_generator_in_bfloat16_is_as_accurate_as_the_generator(generator):
    inputs = inputs_of(generator, 8)
    folded, exact = FoldedGenerator(generator, torch.bfloat16), itself(generator, inputs, 2)
    frames = folded.frames(inputs, 2)
    assert frames.dtype == torch.bfloat16
    compute_copy = copy.deepcopy(generator).eval().bfloat16()
    with torch.no_grad():
        own = (compute_copy.frames(inputs.bfloat16(), 2).double() - exact).norm()
    assert (frames.double() - exact).norm() <= 2 * own


@pytest.mark.parametrize("interpolate", [0, -1])
def test_fewer_frames_than_there_are_cannot_be_sampled(interpolate):
    with pytest.raises(ValueError, match=f"interpolate must be at least 1, and is {interpolate}"):
        Sampler(trained("video"), interpolate=interpolate)
