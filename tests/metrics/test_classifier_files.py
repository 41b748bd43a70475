"""C3D's weights in the formats in which they circulate, and errors about other files."""

import math

import numpy as np
import pytest
import torch
from support import c3d_weights
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import Classifier, build_network
from tgan_fast.metrics.classifier_files import load_classifier, read_mean, save_classifier


def small_classifier():
    return Classifier("small", build_network("small", 4, 1).eval(), ("a", "b", "c", "d"), 1, None, 0.75)


class Scripted(nn.Module):
    """C3D as others export it to TorchScript: a layer before it, other names, probabilities at the end."""

    def __init__(self, weights):
        super().__init__()
        self.pre = nn.Conv3d(3, 3, 1, bias=False)
        self.register_buffer("mean", torch.zeros(3, 16, 112, 112))
        self.stem = nn.Sequential(*[self._conv(weights, name) for name in list(c3d_weights.SHAPES)[:8]])
        self.head = nn.Sequential(*[self._linear(weights, name) for name in list(c3d_weights.SHAPES)[8:]])

    def forward(self, x):
        return self.head(self.stem(self.pre(x) + self.mean).flatten(1)).softmax(1)

    def _conv(self, weights, name):
        out, into = weights[f"{name}/W"].shape[:2]
        return self._filled(nn.Conv3d(into, out, 3, padding=1, device="meta"), weights, name)

    def _linear(self, weights, name):
        return self._filled(nn.Linear(*weights[f"{name}/W"].shape[::-1], device="meta"), weights, name)

    @staticmethod
    def _filled(layer, weights, name):
        layer.weight = nn.Parameter(torch.from_numpy(weights[f"{name}/W"]))
        layer.bias = nn.Parameter(torch.from_numpy(weights[f"{name}/b"]))
        return layer


@pytest.mark.slow
def test_chainers_arrays_torchscript_and_the_own_format_hold_the_same_classifier(
    c3d_files, c3d_classifier, chainer_weights, tmp_path
):
    mean, of_chainer = c3d_files[1], c3d_classifier
    state = of_chainer.network.state_dict()
    assert torch.equal(state["conv5b.weight"], torch.from_numpy(chainer_weights["conv5b/W"]))
    assert torch.equal(state["fc8.bias"], torch.from_numpy(chainer_weights["fc8/b"]))
    assert torch.equal(of_chainer.mean, torch.from_numpy(c3d_weights.random_mean()))
    assert (of_chainer.architecture, of_chainer.channels, len(of_chainer.classes)) == ("c3d", 3, 101)
    assert not of_chainer.network.training

    torch.jit.script(Scripted(chainer_weights)).save(tmp_path / "c3d_ucf101.pt")
    of_script = load_classifier(tmp_path / "c3d_ucf101.pt", mean)
    save_classifier(tmp_path / "own.pt", of_chainer)
    own = load_classifier(tmp_path / "own.pt")
    assert of_chainer.fingerprint == of_script.fingerprint == own.fingerprint


def test_the_fingerprint_tells_weights_and_means_apart():
    first, second = small_classifier(), small_classifier()
    assert first.fingerprint != second.fingerprint
    means = [None, *(torch.full((3, 16, 128, 171), level) for level in (1.0, 2.0))]
    assert len({Classifier("small", first.network, ("a",), 1, mean).fingerprint for mean in means}) == 3


def test_the_packages_own_format_keeps_everything(tmp_path):
    classifier = small_classifier()
    save_classifier(tmp_path / "c.pt", classifier)
    got = load_classifier(tmp_path / "c.pt")
    assert (got.architecture, got.classes, got.channels, got.mean, got.accuracy) == (
        "small",
        ("a", "b", "c", "d"),
        1,
        None,
        0.75,
    )
    videos = torch.rand(2, 1, 16, 64, 64)
    assert torch.equal(got.network(videos)["logits"], classifier.network(videos)["logits"])


def zeros(*shape):
    return np.zeros(shape, np.float32)


# All names, but few of the weights, since the error comes before they are used.
NAMES = {f"{layer}/{kind}": zeros(1) for layer in c3d_weights.SHAPES for kind in "Wb"} | {"fc8/b": zeros(101)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (NAMES | {"fc8/b": zeros(487)}, "has the 487 classes of Sports-1M"),
        (NAMES | {"fc8/b": zeros(10)}, "has 10 classes, but UCF-101 has 101"),
        ({name: array for name, array in NAMES.items() if name != "fc7/W"}, r"fc7\.weight is missing"),
        (NAMES, r"conv1a\.weight is \[1\], and should be \[64, 3, 3, 3, 3\]"),
        ({"conv9/W": zeros(3)} | NAMES, r"it has no conv9\.weight"),
        ({"fc8/b": zeros(1)} | NAMES | {"fc8/b": zeros(101) * np.nan}, r"fc8\.bias in .* is not finite"),
        ({"image": zeros(3)}, "are not C3D's: it has image, float32"),
        ({"conv1a/W": np.zeros(3, int)}, "are not C3D's: it has conv1a/W, int64"),
    ],
    ids=["487 classes", "10 classes", "missing", "shape", "unknown", "nan", "other arrays", "integers"],
)
def test_wrong_weights_are_named(tmp_path, weights, message):
    path = c3d_weights.write_chainer(tmp_path / "x.npz", weights)
    with pytest.raises(InputError, match=message) as caught:
        load_classifier(path)
    assert str(path) in str(caught.value)


def test_sports_1m_weights_in_a_pickle_are_named(tmp_path):
    torch.save({"fc8.bias": torch.zeros(487)}, tmp_path / "c3d.pickle", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"c3d\.pickle has the 487 classes of Sports-1M"):
        load_classifier(tmp_path / "c3d.pickle")


def test_other_files_are_no_classifiers(tmp_path):
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"format": "tgan_fast checkpoint 1"}, tmp_path / "checkpoint.pt")
    torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "script.pt")
    whole = tmp_path / "whole.pt"
    save_classifier(whole, small_classifier())
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    for name, message in [
        ("text.pt", "is not a classifier, or is damaged"),
        ("empty.pt", "is not a classifier, or is damaged"),
        ("cut.pt", "is damaged: get the file anew"),
        ("checkpoint.pt", "is not a classifier that this tgan_fast knows"),
        ("script.pt", "holds 0 weights and 0 biases that can be C3D's, which has 11 of each"),
        ("nothing.pt", "there is no classifier"),
    ]:
        with pytest.raises(InputError, match=message):
            load_classifier(tmp_path / name)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"format": pytest.raises}, tmp_path / "code.pt")
    with pytest.raises(InputError, match="is not a classifier, or is damaged"):
        load_classifier(tmp_path / "code.pt")


@pytest.mark.slow
def test_a_mean_is_given_where_it_is_needed_and_nowhere_else(c3d_files, tmp_path):
    with pytest.raises(InputError, match=r"has no mean: give mean2\.npz as well"):
        load_classifier(c3d_files[0])
    save_classifier(tmp_path / "c.pt", small_classifier())
    with pytest.raises(InputError, match="needs no mean: leave out"):
        load_classifier(tmp_path / "c.pt", c3d_files[1])


def test_means_of_other_shapes_are_refused_and_the_usual_ones_read(tmp_path):
    mean = c3d_weights.random_mean()
    for shape in [(3, 16, 128, 171), (3, 1, 16, 128, 171)]:
        assert torch.equal(
            read_mean(c3d_weights.write_mean(tmp_path / "m.npz", mean.reshape(shape))), torch.from_numpy(mean)
        )
    for wrong, message in [
        (mean[:, :8], r"is \[3, 8, 128, 171\], but C3D needs \[3, 16, 128, 171\]"),
        (mean[..., :112, :112], r"is \[3, 16, 112, 112\]"),
        (np.full_like(mean, np.nan), "is not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            read_mean(c3d_weights.write_mean(tmp_path / "m.npz", wrong))
    np.savez(tmp_path / "other.npz", average=mean)
    with pytest.raises(InputError, match="has no array 'mean', but average"):
        read_mean(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(InputError, match="is not a file of NumPy arrays"):
        read_mean(tmp_path / "text.npz")


def bits_flipped(content, count, seed):
    random = np.random.default_rng(seed)
    damaged = bytearray(content)
    for place in random.integers(len(damaged), size=count):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_noticed_or_does_no_harm(tmp_path, seed):
    path, classifier = tmp_path / "x.pt", small_classifier()
    save_classifier(path, classifier)
    whole, random = path.read_bytes(), np.random.default_rng(seed)
    for number in range(100):
        cut = whole[: random.integers(len(whole))]
        path.write_bytes(cut if number % 4 == 0 else bits_flipped(whole, 1 + number % 3, (seed, number)))
        try:
            loaded = load_classifier(path)
        except InputError:
            continue
        assert loaded.fingerprint == classifier.fingerprint


def test_one_bit_of_a_weight_is_noticed(tmp_path):
    path, classifier = tmp_path / "x.pt", small_classifier()
    save_classifier(path, classifier)
    content = bytearray(path.read_bytes())
    place = content.find(classifier.network.linear.weight.detach().numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt is damaged: get the file anew"):
        load_classifier(path)


@pytest.mark.parametrize("name", ["architecture", "classes", "channels", "mean", "accuracy", "network"])
def test_values_of_other_kinds_are_one_sentence(tmp_path, name):
    path = tmp_path / "x.pt"
    save_classifier(path, small_classifier())
    content = torch.load(path, weights_only=True)
    values = [-1, 2**70, math.nan, "x", ["a", 1], {"a": 1}, torch.zeros(3, device="meta")]
    for value in values:
        torch.save(content | {name: value}, path)
        with pytest.raises(InputError) as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)
    torch.save({key: value for key, value in content.items() if key != name}, path)
    with pytest.raises(InputError):
        load_classifier(path)


def test_weights_of_other_kinds_are_one_sentence(tmp_path):
    path = tmp_path / "x.pt"
    save_classifier(path, small_classifier())
    content = torch.load(path, weights_only=True)
    weight = content["network"]["linear.weight"]
    others = [None, [1.0], weight.double(), weight.half(), weight.to(torch.float8_e4m3fn), weight.to(torch.complex64)]
    others += [weight.int(), weight.to_sparse(), torch.empty_like(weight, device="meta")]
    for other in others:
        torch.save(content | {"network": content["network"] | {"linear.weight": other}}, path)
        with pytest.raises(
            InputError, match=r"linear\.weight in .*x\.pt is not an array of torch\.float32: get the file anew"
        ):
            load_classifier(path)


@pytest.mark.parametrize("dtype", ["U3", "complex64", "bool"])
def test_means_of_other_kinds_are_one_sentence(tmp_path, dtype):
    np.savez(tmp_path / "mean2.npz", mean=np.zeros((3, 16, 128, 171), dtype))
    with pytest.raises(InputError, match=r"the mean in .*mean2\.npz is .*, not an array of numbers: give mean2\.npz"):
        read_mean(tmp_path / "mean2.npz")


@pytest.mark.parametrize("dtype", [">f4", "<f8", "longdouble"])
def test_means_of_any_precision_are_read(tmp_path, dtype):
    mean = c3d_weights.random_mean()
    np.savez(tmp_path / "mean2.npz", mean=mean.astype(dtype))
    assert np.array_equal(read_mean(tmp_path / "mean2.npz").numpy(), mean.astype(np.float32))
