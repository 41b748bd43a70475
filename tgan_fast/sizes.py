"""Sizes of videos, and the layer sizes that follow from them."""

FRAMES = 16
IMAGE_SIZE = 64

FEWEST_FRAMES, MOST_FRAMES = 8, 64
IMAGE_SIZES = (16, 32, 64, 128)
# Side in pixels of a generator's first image, and of a discriminator's last one.
SMALLEST_IMAGE = 4
# Sides of moving digits as shares of the frame: 4 of 16 pixels, Moving MNIST's 28 of 64, and 15 of 16.
SMALLEST_DIGITS, PAPER_DIGITS, LARGEST_DIGITS = 0.25, 0.4375, 0.9375
# Largest speed of moving digits along each axis, in shares of the frame per frame: 5 of 64 pixels.
PAPER_SPEED = 0.078125


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, at least 1, for models narrower or wider than the paper's."""
    return max(1, round(channels * width))


def doublings(image_size: int) -> int:
    """Return the number of doublings that turn 4×4 pixels into an image of `image_size`."""
    return (image_size // SMALLEST_IMAGE).bit_length() - 1


def check_sizes(clip_frames: int, image_size: int) -> None:
    """Raise a ValueError unless there are networks for such videos."""
    if not FEWEST_FRAMES <= clip_frames <= MOST_FRAMES:
        raise ValueError(f"a video has {FEWEST_FRAMES} to {MOST_FRAMES} frames, not {clip_frames}")
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"images are squares of {', '.join(map(str, IMAGE_SIZES))} pixels, not {image_size}")
