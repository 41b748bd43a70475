"""C3D against NumPy in float64, computed from the same .npz file."""

import numpy as np
import pytest
import torch

from tgan_fast.metrics.classifier_networks import C3D


def convolve(x, weight, bias):
    """[C, T, H, W] → [out, T, H, W]: for every place of the kernel a product of matrices."""
    _, t, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    out = np.zeros((len(weight), t * h * w)) + bias[:, None]
    for i in range(3):
        for j in range(3):
            for k in range(3):
                part = padded[:, i : i + t, j : j + h, k : k + w].reshape(len(x), -1)
                out += weight[:, :, i, j, k] @ part
    return out.reshape(-1, t, h, w)


def pool(x, size):
    """Return the maximum of each block, also of incomplete blocks at the end."""
    blocks = [-(-length // block) for length, block in zip(x.shape[1:], size, strict=True)]
    room = [(0, n * block - length) for n, block, length in zip(blocks, size, x.shape[1:], strict=True)]
    padded = np.pad(x, ((0, 0), *room), constant_values=-np.inf)
    split = padded.reshape(len(x), blocks[0], size[0], blocks[1], size[1], blocks[2], size[2])
    return split.max((2, 4, 6))


def c3d_in_numpy(weights, video):
    """Logits and taps of a video [3, 16, 112, 112]."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    x = video.astype(np.float64)
    pooled_after = {"conv1a": (1, 2, 2), **dict.fromkeys(("conv2a", "conv3b", "conv4b", "conv5b"), (2, 2, 2))}
    for layer in ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
        x = np.maximum(convolve(x, weights[f"{layer}/W"], weights[f"{layer}/b"]), 0)
        if layer in pooled_after:
            x = pool(x, pooled_after[layer])
    seen = {"pool5": x.reshape(-1)}
    seen["fc6"] = np.maximum(weights["fc6/W"] @ seen["pool5"] + weights["fc6/b"], 0)
    seen["fc7"] = np.maximum(weights["fc7/W"] @ seen["fc6"] + weights["fc7/b"], 0)
    return {"logits": weights["fc8/W"] @ seen["fc7"] + weights["fc8/b"], **seen}


@pytest.mark.slow
def test_all_layers_are_those_of_an_independent_computation(chainer_weights, c3d_classifier):
    video = np.random.default_rng(1).uniform(-100, 155, (3, 16, 112, 112)).astype(np.float32)
    network = c3d_classifier.network
    with torch.no_grad():
        got = network(torch.from_numpy(video)[None], network.taps)
    expected = c3d_in_numpy(chainer_weights, video)
    assert list(got) == ["logits", "pool5", "fc6", "fc7"]
    for layer, activations in expected.items():
        error = np.abs(got[layer][0].numpy() - activations).max() / np.abs(activations).max()
        # Some ten roundings of float32 in a row, each of a sum of thousands.
        assert error < 2e-5, layer
        assert np.std(activations) > 0


def test_the_shape_is_the_papers():
    with torch.device("meta"):
        network = C3D()
        seen = network(torch.empty(2, 3, 16, 112, 112), network.taps)
    assert sum(parameter.numel() for parameter in network.parameters()) == 77_995_776 + 101 * 4097
    assert {name: tuple(x.shape) for name, x in seen.items()} == {
        "logits": (2, 101),
        "pool5": (2, 8192),
        "fc6": (2, 4096),
        "fc7": (2, 4096),
    }
