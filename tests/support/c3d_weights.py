"""Files in the layout of C3D's weights, with random numbers."""

import numpy as np

# Of every layer, the shape of Chainer's W; b has the first number.
SHAPES = {
    "conv1a": (64, 3, 3, 3, 3),
    "conv2a": (128, 64, 3, 3, 3),
    "conv3a": (256, 128, 3, 3, 3),
    "conv3b": (256, 256, 3, 3, 3),
    "conv4a": (512, 256, 3, 3, 3),
    "conv4b": (512, 512, 3, 3, 3),
    "conv5a": (512, 512, 3, 3, 3),
    "conv5b": (512, 512, 3, 3, 3),
    "fc6": (4096, 8192),
    "fc7": (4096, 4096),
    "fc8": (101, 4096),
}


def random_weights(seed=0, classes=101):
    """Chainer's names and float32 arrays, scaled so that activations neither grow nor vanish."""
    random = np.random.default_rng(seed)
    weights = {}
    for layer, shape in (SHAPES | {"fc8": (classes, 4096)}).items():
        deviation = (2 / np.prod(shape[1:])) ** 0.5
        weights[f"{layer}/W"] = random.standard_normal(shape, np.float32) * np.float32(deviation)
        weights[f"{layer}/b"] = random.standard_normal(shape[0], np.float32) * np.float32(0.1)
    return weights


def random_mean(seed=0):
    """Return a random mean like that of mean2.npz: [3, 16, 128, 171] about 100."""
    return 100 + 10 * np.random.default_rng(seed).standard_normal((3, 16, 128, 171), np.float32)


def write_chainer(path, weights):
    """Write weights in the layout of conv3d_deepnetA_ucf.npz."""
    np.savez(path, **weights)
    return path


def write_mean(path, mean):
    """Write a mean in the layout of mean2.npz."""
    np.savez(path, mean=mean)
    return path
