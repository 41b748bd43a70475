"""Features of networks, against direct calls of the networks."""

from dataclasses import replace

import pytest
import torch
from support.classifiers import FrameMeans, Means, scripted
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import Classifier, build_network, widened
from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures, InceptionFeatures
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.pixels import to_clips, to_videos

CPU = torch.device("cpu")
NAMES = tuple("abcde")


def small_classifier(channels=1):
    network = build_network("small", len(NAMES), channels)
    for _ in range(3):
        network(torch.rand(4, channels, 16, 64, 64))
    return Classifier("small", network.eval(), NAMES, channels)


def test_a_small_classifier_sees_videos_as_they_are(device):
    classifier, videos = small_classifier(), torch.rand(3, 1, 16, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = classifier.network(videos, ["mean"])
    seen = ClassifierFeatures(classifier, PROTOCOLS["plain"], device, "fp32").of_generated(videos.to(device))
    torch.testing.assert_close(seen.probabilities.cpu(), expected["logits"].softmax(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.features.cpu(), expected["mean"], rtol=1e-4, atol=1e-6)
    assert seen.probabilities.dtype == seen.features.dtype == torch.float32


def test_a_widened_classifier_sees_the_mean_of_the_channels():
    gray, videos = small_classifier(), torch.rand(3, 3, 16, 64, 64) * 2 - 1
    colored = widened(gray, 3)
    assert (colored.channels, colored.classes) == (3, gray.classes)
    see_gray, see_colored = (ClassifierFeatures(one, PROTOCOLS["plain"], CPU, "fp32") for one in (gray, colored))
    seen, expected = see_colored.of_generated(videos), see_gray.of_generated(videos.mean(1, keepdim=True))
    torch.testing.assert_close(seen.features, expected.features, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)


def test_real_clips_and_generated_videos_of_the_same_levels_look_the_same():
    clips = torch.randint(256, (2, 16, 64, 64, 1), dtype=torch.uint8)
    see = ClassifierFeatures(small_classifier(), PROTOCOLS["plain"], CPU, "fp32")
    for real, generated in zip(see.of_real(clips), see.of_generated(to_videos(clips)), strict=True):
        assert torch.equal(real, generated)


def test_a_single_channel_of_real_clips_is_repeated():
    clips = torch.randint(256, (2, 16, 64, 64, 1), dtype=torch.uint8)
    see = ClassifierFeatures(small_classifier(channels=3), PROTOCOLS["plain"], CPU, "fp32")
    assert torch.equal(see.of_real(clips).features, see.of_real(clips.expand(-1, -1, -1, -1, 3)).features)


def test_other_channels_are_named():
    see = ClassifierFeatures(small_classifier(), PROTOCOLS["plain"], CPU, "fp32")
    with pytest.raises(InputError, match="the videos have 3 channels, but the classifier takes 1"):
        see.of_real(torch.zeros(2, 16, 64, 64, 3, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tgan", "tgan2"])
def test_c3d_sees_what_the_protocol_prepares(c3d_classifier, name):
    classifier, protocol = c3d_classifier, replace(PROTOCOLS[name], layer="fc6")
    videos = torch.rand(1, 3, 16, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = classifier.network(protocol.prepare(videos, classifier.mean), ["fc6"])
    seen = ClassifierFeatures(classifier, protocol, CPU, "fp32").of_generated(videos)
    # Sums of thousands of float32 numbers run in another order.
    torch.testing.assert_close(seen.probabilities, expected["logits"].softmax(1), rtol=1e-3, atol=1e-6)
    assert (seen.features - expected["fc6"]).abs().max() < 1e-5 * expected["fc6"].max()


def test_bf16_sees_about_the_same_and_tells_the_difference(device):
    # C3D is left out, since processors without bfloat16 instructions take minutes per video.
    classifier, videos = small_classifier(), torch.rand(3, 1, 16, 64, 64, device=device) * 2 - 1
    exact, rounded = (
        ClassifierFeatures(classifier, PROTOCOLS["plain"], device, precision).of_generated(videos)
        for precision in ("fp32", "bf16")
    )
    difference = (rounded.features - exact.features).norm() / exact.features.norm()
    # Several layers in a row round to eight bits.
    assert 1e-4 < difference < 0.05
    assert f"features by {100 * difference:.2g} %" in rounded.difference(exact)


def test_the_classifier_itself_is_left_alone():
    classifier = small_classifier()
    before = classifier.network.layers[0].weight.stride()
    ClassifierFeatures(classifier, PROTOCOLS["plain"], CPU, "bf16").of_generated(torch.rand(2, 1, 16, 64, 64))
    assert classifier.network.layers[0].weight.stride() == before
    assert {parameter.dtype for parameter in classifier.network.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())


def test_protocols_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="protocol tgan2 is for classifiers of the architecture c3d, not small"):
        ClassifierFeatures(small_classifier(), PROTOCOLS["tgan2"], CPU, "fp32")
    with pytest.raises(InputError, match="there is no layer 'fc7' to take features from: choose mean"):
        ClassifierFeatures(small_classifier(), replace(PROTOCOLS["plain"], layer="fc7"), CPU, "fp32")


class OneNumber(nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return x.mean()


def test_i3d_gets_levels_of_three_channels(tmp_path):
    see = I3DFeatures(scripted(Means(), tmp_path / "i3d.pt"), CPU)
    clips = torch.randint(256, (2, 16, 64, 64, 1), dtype=torch.uint8)
    expected = clips.float().mean((2, 3, 4)).repeat(1, 3)
    seen = see.of_real(clips)
    assert seen.probabilities is None
    torch.testing.assert_close(seen.features, expected)
    # Between two levels, generated videos are rounded to the nearer one.
    videos = to_videos(clips) + 0.4 / 127.5
    assert torch.equal(to_clips(videos), clips.where(clips < 255, 255))
    torch.testing.assert_close(see.of_generated(videos).features, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_gets_the_levels_of_all_frames_in_order(tmp_path, channels):
    see = InceptionFeatures(scripted(FrameMeans(), tmp_path / "inception.pt"), CPU)
    clips = torch.randint(256, (5, 16, 32, 32, channels), dtype=torch.uint8)
    frames = clips.double().flatten(0, 1)
    means = [part.mean((1, 2)).expand(-1, 3) for part in (frames, frames[:, :16])]
    seen = see.of_real(clips)
    assert seen.probabilities is None
    torch.testing.assert_close(seen.features.double(), torch.cat(means, 1), rtol=1e-5, atol=0)
    torch.testing.assert_close(see.of_generated(to_videos(clips)).features, seen.features)
    picked = seen.of_videos(torch.tensor([3, 0]), 5).features
    assert torch.equal(picked, torch.cat([seen.features[48:64], seen.features[:16]]))


def test_scripts_that_are_not_inception_are_refused(tmp_path):
    clips = torch.zeros(2, 16, 64, 64, 1, dtype=torch.uint8)
    with pytest.raises(
        InputError, match=r"there is no .*nothing\.pt: inception-2015-12-05\.pt is needed for frame-fid"
    ):
        InceptionFeatures(tmp_path / "nothing.pt", CPU)
    with pytest.raises(InputError, match=r"i3d\.pt does not take videos as inception-2015-12-05\.pt does"):
        InceptionFeatures(scripted(Means(), tmp_path / "i3d.pt"), CPU).of_real(clips)


def test_scripts_that_are_not_i3d_are_refused(tmp_path):
    clips = torch.zeros(2, 16, 64, 64, 1, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"there is no .*nothing\.pt: i3d_torchscript\.pt is needed"):
        I3DFeatures(tmp_path / "nothing.pt", CPU)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InputError, match=r"text\.pt is not TorchScript, or is damaged"):
        I3DFeatures(tmp_path / "text.pt", CPU)
    with pytest.raises(InputError, match=r"linear\.pt does not take videos as i3d_torchscript\.pt does"):
        I3DFeatures(scripted(nn.Linear(2, 3), tmp_path / "linear.pt"), CPU).of_real(clips)
    with pytest.raises(InputError, match=r"one\.pt does not return features \[videos, 400\]"):
        I3DFeatures(scripted(OneNumber(), tmp_path / "one.pt"), CPU).of_real(clips)
