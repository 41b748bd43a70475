"""TGAN, the video GAN with two generators and singular value clipping, trained and sampled fast."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgan_fast.models import VideoDiscriminator, VideoGenerator

__all__ = ["VideoDiscriminator", "VideoGenerator"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a command must be able to handle Ctrl-C while PyTorch is imported.
    if name in __all__:
        from tgan_fast import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
