"""Decoding of image sequences: videos with one image file for each frame."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.archives import ArchivedFile
from tgan_fast.preparation.decoding.fit import Fitter, FrameFormat, in_batches

# Pillow starts programs for some other formats, or reads files that are not images.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_GRAY = ("1", "L", "LA", "La")
_GRAY_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_images(paths: Sequence[Path | ArchivedFile], frame_format: FrameFormat) -> Iterator[np.ndarray]:
    """Yield the frames to store of a video whose frames are image files.

    Images are rotated according to their orientation tag, and transparency is ignored.

    Args:
        paths: Image files in display order; files that `frame_format.stride` skips are not opened.
        frame_format: Format of the stored frames.

    Yields:
        Batches uint8 [n, H, W, C], n at most 64.

    Raises:
        ValueError: The frame format sets `fps`, but images have no times.
        UnreadableVideoError: There are no images, one cannot be read, or they have different sizes.
    """
    frame_format.refuse_fps()
    if not paths:
        raise UnreadableVideoError("it has no images")
    return in_batches(_images_of_equal_size(paths[:: frame_format.stride]), Fitter().fit_array, frame_format)


def _images_of_equal_size(paths):
    """Yield the images as arrays uint8: [H, W] for gray, [H, W, 3] for color."""
    first = None
    for path in paths:
        image = _read(path)
        size = image.shape[1], image.shape[0]
        first = first or size
        if size != first:
            raise UnreadableVideoError(
                f"its images have different sizes: {path.name} is {size[0]}×{size[1]}, "
                f"but {paths[0].name} is {first[0]}×{first[1]}"
            )
        yield image


def _read(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Decoding an image that large would fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
                return _to_uint8(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableVideoError(f"{path.name} has too many pixels") from None
    except UnidentifiedImageError:
        raise UnreadableVideoError(f"{path.name} is not an image, or its format is unknown") from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}" if error.strerror else "is damaged"
        raise UnreadableVideoError(f"{path.name} {reason}") from None
    # Pillow's decoders raise these errors for damaged files.
    except (ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError):
        raise UnreadableVideoError(f"{path.name} is damaged") from None


def _to_uint8(image):
    if image.mode in _GRAY_OF_16_BITS:
        # 257 is 65535 / 255, so that white remains white.
        return ((np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(image.convert("L" if image.mode in _GRAY else "RGB"))
