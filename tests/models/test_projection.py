"""A generated clip's latents are found again, and the generator is only read."""

import pytest
import torch
from support.generators import as_if_trained_

from tgan_fast import VideoGenerator
from tgan_fast.models import FrameGenerator, GRUTemporalGenerator
from tgan_fast.models.projection import project
from tgan_fast.models.sampling import draw_inputs, draw_latents

KINDS = {
    "video": (VideoGenerator, {}),
    "video-gru-classes": (VideoGenerator, {"temporal": GRUTemporalGenerator, "classes": 3}),
    "frame-classes": (FrameGenerator, {"classes": 3}),
    "frame-gru-normal": (FrameGenerator, {"temporal": GRUTemporalGenerator, "latent": "normal"}),
}


@pytest.fixture(params=KINDS)
def generator(request):
    network, options = KINDS[request.param]
    generator = network(0.0625, 4, clip_frames=8, image_size=16, **options)
    return as_if_trained_(generator, draw_inputs(generator, 16, seed=1))


def given(generator):
    """Return a video that the generator makes in evaluation mode, of class 1."""
    z = draw_latents(1, 4, 9, distribution=generator.latent)
    labels = torch.ones(1, dtype=torch.int64) if generator.classes else None
    training = generator.training
    with torch.no_grad():
        video = generator.eval()(z, labels)[0]
    generator.train(training)
    return video


def test_a_generated_video_is_reproduced_and_the_generator_only_read(generator):
    video = given(generator)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    found, again = (project(generator, video, restarts=12, steps=150, seed=2) for _ in range(2))
    assert found.error < 0.25 * found.random_error
    assert found.freed_error <= found.error
    assert found.label == (1 if generator.classes else None)
    assert torch.equal(found.latent, again.latent)
    assert torch.equal(found.frame_latents, again.frame_latents)
    assert generator.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in generator.parameters())
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)
    # The latents give the reproductions, by the generator itself.
    labels = None if found.label is None else torch.tensor([found.label])
    with torch.no_grad():
        generator.eval()
        reproduced = generator(found.latent[None], labels)[0]
        inputs = generator.conditioned(found.content[None], labels)
        freed = generator.images(inputs, found.frame_latents[None]).tanh().transpose(0, 1)
    torch.testing.assert_close(reproduced, found.video, rtol=0, atol=1e-4)
    torch.testing.assert_close(freed, found.freed_video, rtol=0, atol=1e-4)
    error = 127.5 * (freed - video).square().mean().sqrt()
    assert found.freed_error == pytest.approx(error.item(), rel=0.01, abs=0.01)


def test_uniform_latents_stay_within_their_bounds():
    generator = as_if_trained_(VideoGenerator(0.0625, 4, clip_frames=8, image_size=16), torch.rand(16, 4) * 2 - 1)
    # No latent makes such a video, and so large a learning rate would leave any bounds.
    found = project(generator, torch.ones(3, 8, 16, 16), restarts=3, steps=20, learning_rate=50.0)
    assert found.latent.abs().max() < 1
    assert found.content.abs().max() < 1


def test_labels_fix_the_class():
    generator = VideoGenerator(0.0625, 4, clip_frames=8, image_size=16, classes=3).eval()
    found = project(generator, torch.zeros(3, 8, 16, 16), restarts=2, steps=2, labels=torch.full((2,), 2))
    assert found.label == 2


def test_wrong_arguments_are_refused():
    generator = VideoGenerator(0.0625, 4, clip_frames=8, image_size=16)
    with pytest.raises(ValueError, match=r"makes videos \[3, 8, 16, 16\], and the given one is \[3, 9, 16, 16\]"):
        project(generator, torch.zeros(3, 9, 16, 16))
    with pytest.raises(ValueError, match="must be at least 1, and are 0 and 900"):
        project(generator, torch.zeros(3, 8, 16, 16), restarts=0)
