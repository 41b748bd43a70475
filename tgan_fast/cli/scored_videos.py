"""Videos that `python -m tgan_fast evaluate` scores: those of a generator, or videos from files."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tgan_fast.errors import InputError, counted
from tgan_fast.extras import require_package
from tgan_fast.sizes import FEWEST_FRAMES, FRAMES, IMAGE_SIZE, IMAGE_SIZES


class GeneratedVideos:
    """Videos of a checkpoint's generator.

    Attributes:
        kind: Name of the videos.
        compared: Name of the clips that they are compared with.
        has: Beginning of a sentence about them.
        notices: Sentences on them.
        size: Frames of a clip, side of a frame in pixels, and channels.
    """

    kind, compared, has, notices = "generated videos", "real clips", "the generator makes", ()

    def __init__(self, command, checkpoint, device):
        from tgan_fast.models.sampling import refuse_non_finite

        self._command, self._checkpoint = command, checkpoint
        self.generator = checkpoint.generator(command.weights).to(device)
        refuse_non_finite(self.generator, checkpoint.path)
        self.size = self.generator.clip_frames, self.generator.image_size, self.generator.channels

    def real_data(self, metrics):
        """Return the data set to compare with, or None for none."""
        from tgan_fast.training import TrainingConfig
        from tgan_fast.training.dataset import open_data, with_data

        command, checkpoint = self._command, self._checkpoint
        if command.data is None and not checkpoint.tells_data:
            if metrics == ("is",):
                return None
            raise InputError(f"{checkpoint.path} does not say what it was trained on: give --data")
        return open_data(with_data(checkpoint.config or TrainingConfig(), command.data))

    def scores(self, evaluator):
        """Return the score of every metric by its name in files."""
        evaluator.prepare()
        return evaluator(self.generator)

    def clips_per_run(self, protocol) -> int:
        """Return the number of clips that a run scores."""
        return protocol.samples

    def record(self) -> dict:
        """Return entries for files that say what was scored."""
        return {
            "checkpoint": self._checkpoint.path.name,
            "iteration": self._checkpoint.iteration,
            "weights": self._checkpoint.kind(self._command.weights),
        }

    def run_folder(self) -> Path | None:
        """Return the run folder whose file of scores gets a line, or None for none."""
        from tgan_fast.training.checkpoint import run_folder_of

        return run_folder_of(self._checkpoint.path)


class GivenVideos:
    """Videos from files, with the attributes and methods of `GeneratedVideos`."""

    kind, has = "videos", "there are"

    def __init__(self, command):
        from tgan_fast.data import VideoFrames

        self._command, self.notices = command, []
        paths = [path for path in (command.videos, command.data) if path is not None]
        opened = self._open_all(paths)
        longest = min(int(videos.length.max()) for videos in opened)
        if longest < FEWEST_FRAMES:
            raise InputError(f"the videos have at most {longest} frames, but scores need {FEWEST_FRAMES} or more")
        sides = [videos.frames.shape[1] for videos in opened]
        if len(set(sides)) > 1:
            raise InputError(
                f"the frames of {paths[0]} are {sides[0]} pixels high and those of {paths[1]} {sides[1]}: "
                "prepare both with the same --size"
            )
        if sides[0] not in IMAGE_SIZES:
            *sizes, last = IMAGE_SIZES
            raise InputError(
                f"the frames of {paths[0]} are {sides[0]} pixels high: prepare the videos with a --size of "
                f"{', '.join(map(str, sizes))} or {last}"
            )
        clips = [VideoFrames(videos, clip_frames=min(FRAMES, longest), image_size=sides[0]) for videos in opened]
        self._videos, self._real = clips[0], clips[1] if len(clips) == 2 else None
        self.compared = "clips of the other half" if self._real is None else "real clips"
        if self._real is None and len(self._videos) < 4:
            raise InputError(f"{command.videos} has too few videos for two halves: give 4 or more, or give --data")
        for videos, kept in zip(opened, clips, strict=True):
            if len(videos.length) > len(kept):
                short = counted(len(videos.length) - len(kept), "video")
                self.notices.append(f"{short} of {videos.name} left out: shorter than {kept.clip_frames} frames")
        self.size = self._videos.clip_frames, sides[0], max(videos.frames.shape[3] for videos in opened)

    def _open_all(self, paths):
        """Open prepared videos; prepare the others in the size of those, and open them."""
        from tgan_fast.data import read_videos
        from tgan_fast.data.array_files import ARRAY_SUFFIXES
        from tgan_fast.data.clip_store import ClipStore
        from tgan_fast.data.hdf5_files import HDF5_SUFFIXES

        suffixes = ARRAY_SUFFIXES | HDF5_SUFFIXES
        opened = {
            path: read_videos(path)
            for path in paths
            if ClipStore.is_at(path) or path.suffix.lower() in suffixes or not path.exists()
        }
        size = next((videos.frames.shape[1] for videos in opened.values()), IMAGE_SIZE)
        for path in paths:
            opened[path] = opened.get(path) or self._prepare(path, size)
        return [opened[path] for path in paths]

    def _prepare(self, path, size):
        require_package("av", "evaluate needs PyAV for videos that are not prepared")
        from tgan_fast.cli.prepare import PROCESSORS, progress_bar
        from tgan_fast.data import read_videos
        from tgan_fast.preparation import prepare
        from tgan_fast.preparation.decoding import FrameFormat
        from tgan_fast.preparation.sources import recognize

        collection = recognize(path)
        # The frames stay readable after the folder is gone, since they are mapped.
        with TemporaryDirectory() as store, progress_bar(collection, path) as bar:
            result = prepare(
                collection,
                Path(store),
                FrameFormat(size, size, collection.channels),
                workers=PROCESSORS,
                fewest=FEWEST_FRAMES,
                progress=lambda _, nbytes: bar.update(nbytes),
            )
            for video in result.skipped[:1]:
                count = counted(len(result.skipped), "video")
                self.notices.append(f"{count} of {path} left out, such as {video.video}: {video.reason}")
            if not result.stored:
                raise InputError(f"no video of {path} can be used: {result.skipped[0].reason}")
            return replace(read_videos(store), name=str(path))

    def real_data(self, metrics):
        return self._real

    def scores(self, evaluator):
        if self._real is None:
            return evaluator.of_halves(self._videos)
        evaluator.prepare()
        return evaluator.of_clips(self._videos)

    def clips_per_run(self, protocol) -> int:
        from tgan_fast.metrics.real_clips import distinct_clips

        most = len(self._videos) // 2 if self._real is None else distinct_clips(self._videos)
        return min(protocol.samples, most)

    def record(self) -> dict:
        data = self._command.data
        return {"videos": str(self._command.videos), "data": None if data is None else str(data)}

    def run_folder(self) -> Path | None:
        return None
