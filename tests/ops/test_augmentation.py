"""augment_videos against a loop over pixels in float64, and its derivatives against those of that loop."""

from itertools import combinations, product

import pytest
import torch

from tgan_fast.ops import BackendError, augment_videos
from tgan_fast.ops.augmentation import TRANSFORMS

POLICIES = [policy for count in (1, 2, 3) for policy in combinations(TRANSFORMS, count)]
SHAPES = {
    "color": (3, 3, 8, 16, 16),
    "gray": (4, 1, 8, 32, 32),
    "two-channels": (2, 2, 3, 16, 16),
    "rectangles": (3, 3, 2, 12, 21),
    "five-channels-of-one-pixel": (2, 5, 1, 1, 1),
    "many-programs": (2, 3, 17, 64, 64),
}


def random_numbers(n, device="cpu"):
    """Return random numbers whose first rows are the smallest and the largest."""
    numbers = torch.rand(n, 7, generator=torch.Generator().manual_seed(1))
    numbers[0], numbers[-1] = 0, 1 - 2**-24
    return numbers.to(device)


def by_pixels(videos, numbers, transforms):
    """Return augmented videos [N, C, T, H, W], pixel by pixel, in the videos' dtype and differentiable."""
    results, (height, width) = [], videos.shape[3:]
    for x, row in zip(videos, numbers.double().tolist(), strict=True):
        if "color" in transforms:
            x = x + (row[0] - 0.5)
            gray = x.mean(0)
            x = gray + 2 * row[1] * (x - gray)
            x = x.mean() + (row[2] + 0.5) * (x - x.mean())
        moves = [0, 0]
        if "translation" in transforms:
            reach = [int(size / 8 + 0.5) for size in (height, width)]
            moves = [int(u * (2 * r + 1)) - r for u, r in zip(row[3:5], reach, strict=True)]
        black = 0 * x[:, :, 0, 0]
        pixels = []
        for top, left in product(range(height), range(width)):
            y, from_left = top + moves[0], left + moves[1]
            cut = "cutout" in transforms and is_cut(top, height, row[5]) and is_cut(left, width, row[6])
            inside = 0 <= y < height and 0 <= from_left < width
            pixels.append(x[:, :, y, from_left] if inside and not cut else black)
        results.append(torch.stack(pixels, 2).unflatten(2, (height, width)))
    return torch.stack(results)


def is_cut(place, size, u):
    side = int(size / 2 + 0.5)
    center = int(u * (size + 1 - side % 2))
    return center - side // 2 <= place < center - side // 2 + side


def random_videos(shape, dtype=torch.float64, device="cpu"):
    random = torch.Generator().manual_seed(2)
    videos = (torch.rand(shape, generator=random, dtype=torch.float64) * 2 - 1).to(device, dtype)
    return videos.contiguous(memory_format=torch.channels_last_3d)


def error(got, exact):
    return ((got.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def gradients(function, videos, direction):
    """Return the result, the gradient along a direction, and the result's derivative with respect to the direction."""
    videos, direction = videos.detach().requires_grad_(), direction.detach().requires_grad_()
    result = function(videos)
    (gradient,) = torch.autograd.grad(result, videos, direction, create_graph=True)
    (twice,) = torch.autograd.grad(gradient, direction, videos.detach())
    return [tensor.detach() for tensor in (result, gradient, twice)]


@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_videos_and_derivatives_in_float64_are_those_of_a_loop(shape, policy, device):
    videos, numbers = random_videos(shape, device=device), random_numbers(shape[0], device)
    direction = random_videos(shape, device=device).flip(0)
    got = gradients(lambda x: augment_videos(x, numbers, policy, backend="torch"), videos, direction)
    expected = gradients(lambda x: by_pixels(x, numbers, policy), videos, direction)
    for found, exact in zip(got, expected, strict=True):
        # Coefficients are computed from the random numbers in float32.
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6 if "color" in policy else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernels_are_as_accurate_as_pytorchs_operations(shape, dtype, triton_device):
    pytest.importorskip("triton")
    numbers = random_numbers(shape[0], triton_device)
    videos = random_videos(shape, dtype, triton_device)
    direction = videos.flip(0)
    for policy in POLICIES if shape is not SHAPES["many-programs"] else POLICIES[-1:]:
        exact = gradients(
            lambda x, policy=policy: augment_videos(x, numbers, policy, backend="torch"),
            videos.double(),
            direction.double(),
        )
        by_backend = {
            backend: gradients(
                lambda x, policy=policy, backend=backend: augment_videos(x, numbers, policy, backend=backend),
                videos,
                direction,
            )
            for backend in ("torch", "triton")
        }
        # Triton's interpreter rounds bfloat16 toward zero.
        rounds_worse = triton_device.type == "cpu" and dtype == torch.bfloat16
        slack = torch.finfo(dtype if rounds_worse else torch.float32).eps
        for torchs, kernels, expected in zip(*by_backend.values(), exact, strict=True):
            assert kernels.dtype == dtype
            assert kernels.is_contiguous(memory_format=torch.channels_last_3d)
            assert error(kernels, expected) <= 2 * error(torchs, expected) + slack, policy


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_memory_format_does_not_matter(backend, triton_device):
    if backend == "triton":
        pytest.importorskip("triton")
    videos = random_videos(SHAPES["color"], torch.float32, triton_device)
    numbers = random_numbers(len(videos), triton_device)
    expected = augment_videos(videos, numbers, backend=backend)
    wider = torch.cat([videos, videos], 4)[..., ::2][..., : videos.shape[4]]
    for other in (videos.contiguous(), videos.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(augment_videos(other, numbers, backend=backend), expected)
    expected = augment_videos(wider.contiguous(), numbers, backend=backend)
    assert torch.equal(augment_videos(wider, numbers, backend=backend), expected)


def test_all_frames_of_a_video_are_treated_alike_and_videos_are_not():
    videos = random_videos((5, 3, 1, 16, 16)).repeat(1, 1, 4, 1, 1)[:1].repeat(5, 1, 1, 1, 1)
    augmented = augment_videos(videos, random_numbers(5))
    assert (augmented == augmented[:, :, :1]).all()
    assert not any(torch.equal(augmented[0], other) for other in augmented[1:])


def test_a_transform_does_the_same_whichever_others_are_chosen():
    videos, numbers = random_videos(SHAPES["color"]), random_numbers(3)
    one_by_one = videos
    for transform in TRANSFORMS:
        one_by_one = augment_videos(one_by_one, numbers, [transform])
    torch.testing.assert_close(augment_videos(videos, numbers), one_by_one, rtol=0, atol=1e-12)


def test_no_transforms_and_no_videos_change_nothing():
    videos = random_videos(SHAPES["color"])
    assert augment_videos(videos, random_numbers(3), ()) is videos
    assert augment_videos(videos[:0], torch.rand(0, 7)).shape == (0, *videos.shape[1:])


def test_translations_and_cutouts_are_uniform():
    """Count where a video's only pixel goes and how many pixels are cut, over all places that occur."""
    numbers = torch.rand(4000, 7, generator=torch.Generator().manual_seed(3))
    videos = torch.zeros(4000, 1, 1, 16, 16)
    videos[..., 8, 8] = 1
    rows = augment_videos(videos, numbers, ["translation"]).sum((1, 2, 4)).argmax(1)
    counts = torch.bincount(rows, minlength=16)[6:11]
    assert counts.sum() == 4000
    # Five standard deviations of a binomial distribution.
    assert ((counts - 800).abs() < 5 * (4000 * 0.2 * 0.8) ** 0.5).all()
    cut = 256 - augment_videos(torch.ones_like(videos), numbers, ["cutout"]).sum((1, 2, 3, 4))
    assert cut.max() == 64
    assert cut.min() == 16


def test_what_is_refused(triton_device):
    videos, numbers = random_videos(SHAPES["color"]), random_numbers(3)
    with pytest.raises(TypeError, match="videos must be a tensor, not list"):
        augment_videos([videos], numbers)
    with pytest.raises(ValueError, match=r"videos must have the shape \[N, C, T, H, W\], not \[3, 8, 16, 16\]"):
        augment_videos(videos[0], numbers)
    with pytest.raises(ValueError, match=r"numbers must be float32 \[3, 7\] on cpu, not torch.float64 \[3, 7\] on cpu"):
        augment_videos(videos, numbers.double())
    with pytest.raises(ValueError, match=r"numbers must be float32 \[3, 7\] on cpu, not torch.float32 \[2, 7\] on cpu"):
        augment_videos(videos, numbers[:2])
    with pytest.raises(ValueError, match="there is no transform 'blur': choose from color, translation, cutout"):
        augment_videos(videos, numbers, ["blur"])
    with pytest.raises(ValueError, match="has no backend 'cuda': choose auto, triton, torch"):
        augment_videos(videos, numbers, backend="cuda")
    with pytest.raises(BackendError, match=r"it takes .* and the videos are torch\.float64"):
        augment_videos(videos.to(triton_device), numbers.to(triton_device), backend="triton")


@pytest.mark.gpu
def test_a_graph_replays_it():
    from support.graphs import captured

    videos = random_videos(SHAPES["color"], torch.bfloat16, "cuda").requires_grad_()
    numbers = random_numbers(3, "cuda")

    def pass_both_ways():
        augmented = augment_videos(videos, numbers)
        return augmented.detach(), torch.autograd.grad(augmented, videos, augmented.detach())[0]

    graph, found = captured(pass_both_ways)
    numbers.copy_(numbers.flip(0))
    graph.replay()
    for replayed, expected in zip(found, pass_both_ways(), strict=True):
        assert torch.equal(replayed, expected)
