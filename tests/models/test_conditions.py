"""Class labels in networks, against one-hot maps that are really made and convolved."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.models import FrameGenerator, FramesDiscriminator, GRUTemporalGenerator, LSTMTemporalGenerator
from tgan_fast.models.conditions import check_labels, convolved_labels, one_hot
from tgan_fast.models.layers import HalvingConv3d, SameConv2d
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import draw_inputs

CLASSES, WIDTH, LATENT = 3, 0.03125, 6
# Sizes of the videos or images; the first of each is the smallest possible.
HALVED = [(4, 4, 4), (8, 16, 16), (4, 6, 10), (16, 4, 8)]
SAME = [(2, 2), (2, 5), (16, 16), (7, 3)]
LAYERS = {"3d": (HalvingConv3d, F.conv3d, 2, HALVED), "2d": (SameConv2d, F.conv2d, 1, SAME)}
CASES = [
    pytest.param(layer, convolution, stride, size, id=f"{name}-{'x'.join(map(str, size))}")
    for name, (layer, convolution, stride, sizes) in LAYERS.items()
    for size in sizes
]
# Of an odd length the last taps lie within the video, unlike those of an even one.
ODD = [(HalvingConv3d, F.conv3d, 2, size) for size in ((9, 16, 16), (4, 5, 4), (5, 7, 9))]


def labels_of(count, device="cpu", classes=CLASSES):
    """Return labels with every class, and some twice."""
    return (torch.arange(count) % classes).flip(0).to(device)


def one_hot_maps(labels, size, classes=CLASSES):
    """Return maps [N, classes, *size] with a channel of ones for each label."""
    maps = torch.zeros(len(labels), classes, *size, dtype=torch.float64, device=labels.device)
    for n, label in enumerate(labels.tolist()):
        maps[n, label] = 1
    return maps


def assert_same(got, expected, leaves):
    """Check that values and gradients are equal."""
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad(y, leaves, upstream) for y in (got, expected))
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("layer", "convolution", "stride", "size"), CASES)
def test_maps_need_not_be_made_to_be_convolved(layer, convolution, stride, size, device):
    weight = layer(CLASSES, 4).weight.detach().double().to(device).requires_grad_()
    labels = labels_of(5, device)
    expected = convolution(one_hot_maps(labels, size), weight, stride=stride, padding=1)
    got = convolved_labels(labels, weight, size, stride)
    assert got.is_contiguous()
    assert_same(got, expected, [weight])


@pytest.mark.parametrize(("layer", "convolution", "stride", "size"), [*CASES, *ODD])
def test_layers_with_labels_are_layers_with_further_channels(layer, convolution, stride, size, device):
    labels = labels_of(5, device)
    for laid_out in (lambda layer: layer, to_channels_last_):
        network = laid_out(layer(2 + CLASSES, 4).double().to(device))
        x = torch.randn(5, 2, *size, dtype=torch.float64, device=device, requires_grad=True)
        together = torch.cat([x, one_hot_maps(labels, size)], 1)
        expected = convolution(together, network.weight, network.bias, stride=stride, padding=1)
        assert_same(network.with_labels(x, labels), expected, [x, network.weight, network.bias])


def test_one_hot_is_the_framework_s(device):
    labels = labels_of(7, device)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        got = one_hot(labels, CLASSES, dtype)
        assert got.dtype == dtype
        assert torch.equal(got, F.one_hot(labels, CLASSES).to(dtype))
        assert one_hot(labels[:0], CLASSES, dtype).shape == (0, CLASSES)


def test_labels_that_fit_are_accepted():
    check_labels(labels_of(4), 4, CLASSES, "network")
    check_labels(None, 4, 0, "network")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, 3, "the network takes a label of 3 classes with every video, and got none"),
        (torch.zeros(4, dtype=torch.int64), 0, "the network has no classes, and got labels"),
        (torch.zeros(3, dtype=torch.int64), 3, r"labels are int64 \[4\], not torch.int64 \[3\]"),
        (torch.zeros(4, 1, dtype=torch.int64), 3, r"labels are int64 \[4\], not torch.int64 \[4, 1\]"),
        (torch.zeros(4, dtype=torch.int32), 3, r"labels are int64 \[4\], not torch.int32 \[4\]"),
    ],
    ids=["missing", "unwanted", "too few", "a column", "another dtype"],
)
def test_labels_that_do_not_fit_are_named(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 4, classes, "network")


GENERATORS = {
    "video": (VideoGenerator, {}),
    "frame-gru": (FrameGenerator, {"temporal": GRUTemporalGenerator}),
    "frame-lstm": (FrameGenerator, {"temporal": LSTMTemporalGenerator}),
}
DISCRIMINATORS = {"video": VideoDiscriminator, "frames": FramesDiscriminator}
SMALL = {"clip_frames": 8, "image_size": 16}


@pytest.fixture(params=GENERATORS.values(), ids=GENERATORS)
def generator(request, device):
    network, options = request.param
    return network(WIDTH, LATENT, classes=CLASSES, **SMALL, **options).double().to(device).eval()


@pytest.fixture(params=DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def discriminator(request, device):
    return request.param(WIDTH, classes=CLASSES, **SMALL).double().to(device).eval()


def videos(count, device="cpu", frames=8):
    return torch.rand(count, 3, frames, 16, 16, dtype=torch.float64, device=device) * 2 - 1


def test_a_latent_becomes_another_video_with_every_label(generator, device):
    z = torch.randn(1, LATENT, dtype=torch.float64, device=device).expand(CLASSES + 1, -1)
    # The first label twice. With running statistics, a new generator's videos would hardly differ.
    made = generator.train()(z, torch.tensor([0, *range(CLASSES)], device=device))
    torch.testing.assert_close(made[0], made[1], rtol=1e-12, atol=1e-15)
    # By every frame: the label reaches all of them.
    of_classes = made[1:].transpose(1, 2).flatten(2)
    for first, second in combinations(of_classes, 2):
        assert ((first - second).norm(dim=1) > 1e-3 * first.norm(dim=1)).all()


def test_a_video_has_another_score_with_every_label(discriminator, device):
    x = videos(1, device).expand(CLASSES + 1, -1, -1, -1, -1)
    scores = discriminator(x, labels=torch.tensor([0, *range(CLASSES)], device=device))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-12, atol=1e-15)
    assert torch.pdist(scores[1:, None]).min() > 1e-6 * scores.abs().max()


@pytest.mark.parametrize("frames", [8, 9, 10, 16])
def test_a_discriminator_with_classes_judges_videos_with_maps_as_further_channels(frames, device):
    """Compare with a discriminator without classes that has as many channels and the same weights."""
    fast = VideoDiscriminator(WIDTH, clip_frames=frames, image_size=16, classes=CLASSES).double().to(device)
    baseline = VideoDiscriminator(WIDTH, 3 + CLASSES, clip_frames=frames, image_size=16).double().to(device)
    baseline.load_state_dict(fast.state_dict())
    x, labels = videos(5, device, frames), labels_of(5, device)
    expected = baseline(torch.cat([x, one_hot_maps(labels, x.shape[2:])], 1))
    got = fast(x, labels=labels)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(expected)
    gradients, wanted = (
        torch.autograd.grad(y, list(net.parameters()), upstream) for y, net in ((got, fast), (expected, baseline))
    )
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_groups_of_a_discriminator_with_classes_have_the_labels_of_their_videos(device):
    together, apart = (VideoDiscriminator(WIDTH, classes=CLASSES, **SMALL).double().to(device) for _ in range(2))
    apart.load_state_dict(together.state_dict())
    x, labels = videos(6, device), labels_of(6, device)
    parts = zip(x.chunk(2), labels.chunk(2), strict=True)
    expected = torch.cat([apart(part, labels=of_part) for part, of_part in parts])
    torch.testing.assert_close(together(x, groups=2, labels=labels), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-12, atol=1e-12)


def test_frames_as_channels_have_one_further_channel_a_class(device):
    network = FramesDiscriminator(WIDTH, classes=CLASSES, **SMALL).double().to(device)
    x, labels = videos(5, device), labels_of(5, device)
    image = torch.cat([*x.unbind(1), one_hot_maps(labels, (16, 16))], 1)
    for block in network.blocks:
        image = F.max_pool2d(F.leaky_relu(F.conv2d(image, block.weight, block.bias, padding=1), 0.2), 2)
    expected = image.flatten(1) @ network.head.weight[0] + network.head.bias
    assert_same(network(x, labels=labels), expected, list(network.parameters()))


WRONG = [
    (None, "the {network} takes a label of 3 classes with every video, and got none"),
    (torch.zeros(1, dtype=torch.int64), r"labels are int64 \[2\], not torch.int64 \[1\]"),
    (torch.zeros(2), r"labels are int64 \[2\], not torch.float32 \[2\]"),
]


def test_networks_with_classes_refuse_other_labels():
    for labels, message in WRONG:
        for network, options in GENERATORS.values():
            with pytest.raises(ValueError, match=message.format(network="generator")):
                network(WIDTH, LATENT, classes=CLASSES, **SMALL, **options)(torch.zeros(2, LATENT), labels)
        for network in DISCRIMINATORS.values():
            with pytest.raises(ValueError, match=message.format(network="discriminator")):
                network(WIDTH, classes=CLASSES, **SMALL)(videos(2).float(), labels=labels)


def test_networks_without_classes_refuse_labels():
    labels = torch.zeros(2, dtype=torch.int64)
    for network, _ in GENERATORS.values():
        with pytest.raises(ValueError, match="the generator has no classes, and got labels"):
            network(WIDTH, LATENT, **SMALL)(torch.zeros(2, LATENT), labels)
    for network in DISCRIMINATORS.values():
        with pytest.raises(ValueError, match="the discriminator has no classes, and got labels"):
            network(WIDTH, **SMALL)(videos(2).float(), labels=labels)


def test_latents_alone_are_no_inputs_of_a_generator_with_classes(generator, device):
    with pytest.raises(ValueError, match=r"takes latents and one-hot labels \[N, 9\] and got \[2, 6\]"):
        generator.frames(torch.zeros(2, LATENT, dtype=torch.float64, device=device))
    z = torch.randn(4, LATENT, dtype=torch.float64, device=device)
    labels = labels_of(4, device)
    inputs = generator.conditioned(z, labels)
    assert torch.equal(inputs, torch.cat([z, F.one_hot(labels, CLASSES)], 1))
    frames = generator.frames(inputs).tanh()
    assert torch.equal(generator(z, labels).transpose(1, 2).flatten(0, 1), frames)


def test_drawn_inputs_are_latents_and_a_label(generator):
    inputs = draw_inputs(generator, 50, seed=3)
    latents, labels = inputs.split([LATENT, CLASSES], 1)
    assert latents.abs().max() < 1
    assert torch.equal(labels.sort(1).values, torch.tensor([0.0, 0.0, 1.0]).expand(50, -1))
    assert labels.sum(0).min() > 5


STATES = {
    "generator": (reference.Generator, VideoGenerator, {"temp.model.0.weight", "slow.0.weight"}),
    "discriminator": (reference.Discriminator, VideoDiscriminator, {"model3d.0.weight"}),
}


@pytest.mark.parametrize(("before", "now", "see_labels"), STATES.values(), ids=STATES)
def test_classes_change_the_state_of_the_layers_that_see_labels_alone(before, now, see_labels):
    """The reference knows no classes."""
    shapes = {name: value.shape for name, value in before(WIDTH).state_dict().items()}
    for classes in (0, CLASSES):
        state = now(WIDTH, classes=classes).state_dict()
        assert list(state) == list(shapes)
        assert {name for name in state if state[name].shape != shapes[name]} == (see_labels if classes else set())


@pytest.mark.parametrize(("before", "now", "_"), STATES.values(), ids=STATES)
def test_without_classes_new_networks_are_those_of_before(before, now, _):
    """The same random numbers give the same state."""
    states = []
    for network in (before, now):
        torch.manual_seed(1)
        states.append(network(WIDTH).state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


@pytest.mark.gpu
@pytest.mark.parametrize("network", DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def test_labels_do_not_wait_for_the_gpu(network):
    """Labels that waited could not be part of a CUDA graph."""
    discriminator = network(WIDTH, classes=CLASSES, **SMALL).cuda()
    x, labels = videos(4, "cuda").float(), labels_of(4, "cuda")
    discriminator(x, labels=labels).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        discriminator(x, labels=labels).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
