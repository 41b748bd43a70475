"""Batches: complete, in an order that the seed decides, and the same wherever a run starts."""

import itertools
import threading

import numpy as np
import pytest
import torch

from tgan_fast.data import ClipLoader, to_clips, to_videos
from tgan_fast.errors import InputError


class Numbered:
    """Clip i is filled with i, its label is i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full((2, 3, 4, 1), index, np.uint8), index


def labels_of(loader, count, start=0):
    return [labels.tolist() for _, labels in itertools.islice(loader.batches(start), count)]


def test_a_batch_holds_clips_and_their_labels():
    clips, labels = next(ClipLoader(Numbered(9), 4).batches())
    assert clips.shape == (4, 2, 3, 4, 1)
    assert clips.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(clips.amax((1, 2, 3, 4)).long(), labels)
    assert torch.equal(clips.amin((1, 2, 3, 4)).long(), labels)


def test_an_epoch_takes_every_clip_once_and_the_next_one_has_another_order():
    batches = labels_of(ClipLoader(Numbered(12), 4), 6)
    first, second = np.ravel(batches[:3]).tolist(), np.ravel(batches[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


@pytest.mark.parametrize("workers", [1, 3])
def test_any_start_continues_the_same_sequence(workers):
    whole = labels_of(ClipLoader(Numbered(11), 2, seed=5), 20)
    for start in (1, 4, 5, 17):
        loader = ClipLoader(Numbered(11), 2, seed=5, workers=workers)
        assert labels_of(loader, 20 - start, start) == whole[start:]
    assert labels_of(ClipLoader(Numbered(11), 2, seed=6), 20) != whole


def test_an_error_in_the_data_set_reaches_the_caller_and_no_thread_is_left():
    class Broken(Numbered):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("clip 3 is unreadable")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="clip 3 is unreadable"):
        list(itertools.islice(ClipLoader(Broken(6), 2, workers=2).batches(), 3))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clips")]


def test_too_few_clips_are_named():
    with pytest.raises(InputError, match="3 clips, fewer than a batch of 4"):
        ClipLoader(Numbered(3), 4)


def test_videos_are_in_minus_one_to_one_channels_last_and_turn_back_into_clips(device):
    clips = torch.randint(256, (2, 16, 8, 8, 3), dtype=torch.uint8)
    clips[0, 0, 0, 0], clips[0, 0, 0, 1] = 0, 255
    videos = to_videos(clips, device)
    assert videos.shape == (2, 3, 16, 8, 8)
    assert videos.device.type == device.type
    assert videos.is_contiguous(memory_format=torch.channels_last_3d)
    assert videos.min() == -1
    assert videos.max() == 1
    assert torch.equal(to_clips(videos).cpu(), clips)


def test_clips_of_videos_are_rounded_and_held_within_a_byte():
    videos = torch.tensor([-1.5, -1.0, 0.0, 0.0039, 1.0, 7.0]).view(1, 1, 6, 1, 1)
    assert to_clips(videos).flatten().tolist() == [0, 0, 128, 128, 255, 255]
