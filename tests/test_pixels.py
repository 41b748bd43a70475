"""Conversion of clips to videos and back."""

import pytest
import torch

from tgan_fast.pixels import to_clips, to_videos

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_byte_is_scaled_as_well_as_the_dtype_can(device, dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    videos = to_videos(levels.view(1, 16, 4, 4, 1).to(device), dtype)
    assert videos.dtype == dtype
    exact = (levels.double() - 127.5) / 127.5
    found = videos.flatten().cpu()
    if device.type == "cpu" or dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(found, exact.to(dtype))
    # A GPU multiplies by the reciprocal instead of dividing.
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert found.min() == -1
    assert found.max() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_come_back(device, dtype):
    clips = torch.randint(256, (2, 16, 8, 8, 3), dtype=torch.uint8)
    videos = to_videos(clips.to(device), dtype)
    assert torch.equal(to_clips(videos).cpu(), clips)


def test_videos_are_in_minus_one_to_one_channels_last_and_turn_back_into_clips(device):
    clips = torch.randint(256, (2, 16, 8, 8, 3), dtype=torch.uint8)
    clips[0, 0, 0, 0], clips[0, 0, 0, 1] = 0, 255
    videos = to_videos(clips.to(device))
    assert videos.shape == (2, 3, 16, 8, 8)
    assert videos.dtype == torch.float32
    assert videos.device.type == device.type
    assert videos.is_contiguous(memory_format=torch.channels_last_3d)
    assert videos.min() == -1
    assert videos.max() == 1
    assert torch.equal(to_clips(videos).cpu(), clips)


def test_one_channel_becomes_equal_ones(device):
    clips = torch.randint(256, (2, 16, 8, 8, 1), dtype=torch.uint8, device=device)
    videos = to_videos(clips, channels=3)
    assert videos.shape == (2, 3, 16, 8, 8)
    assert videos.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(videos, to_videos(clips).expand(-1, 3, -1, -1, -1))


def test_clips_of_videos_are_rounded_and_held_within_a_byte():
    videos = torch.tensor([-1.5, -1.0, 0.0, 0.0039, 1.0, 7.0]).view(1, 1, 6, 1, 1)
    assert to_clips(videos).flatten().tolist() == [0, 0, 128, 128, 255, 255]
