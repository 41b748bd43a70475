"""Lists of videos: official splits, class indices, and lists of one's own."""

from dataclasses import replace
from pathlib import Path

from tgan_fast.data.sources.collection import Collection, collect
from tgan_fast.data.sources.files import video_file
from tgan_fast.errors import InputError

CLASS_INDEX = "classInd.txt"


def read_list(path: Path) -> Collection:
    """The videos of a list file: on each line the path of a video, from the list's folder on, and perhaps its class.

    Raises:
        InputError: the list is empty or no text, or none of its videos is there.
    """
    videos = []
    for entry, label in _lines(path):
        file = path.parent / entry
        videos.append(video_file(file, Path(entry).as_posix(), label or Path(entry).parent.name or None))
    if not any(video.path.exists() for video in videos):
        raise InputError(
            f"none of the {len(videos):,} videos that {path} names is there, {videos[0].path} for instance: their "
            "paths begin at the list's own folder; an official split list goes with --split and the videos' folder"
        )
    index = find_class_index(path.parent)
    if index is None:
        return collect(f"a list of {len(videos):,} videos", videos)
    classes = read_class_index(index)
    videos = [replace(video, label=_by_number(video.label, classes)) for video in videos]
    return collect(f"a list of {len(videos):,} videos", videos, classes=classes)


def only_of_split(collection: Collection, path: Path) -> Collection:
    """The videos that a split list names, such as trainlist01.txt, in the order of the collection.

    A video is named by its path below the source, or where that is nowhere, by the name of its file.

    Raises:
        InputError: a video of the list is not in the collection.
    """
    by_path = {video.name: video for video in collection.videos}
    by_file = {Path(video.name).name: video for video in collection.videos}
    named = [entry for entry, _ in _lines(path)]
    found = {entry: by_path.get(entry) or by_file.get(Path(entry).name) for entry in named}
    missing = [entry for entry, video in found.items() if video is None]
    if missing:
        raise InputError(
            f"{len(missing):,} of the {len(found):,} videos that {path} names are not in the source, "
            f"{missing[0]} for instance: is it the split list of these videos?"
        )
    chosen = {video.name for video in found.values()}
    return replace(
        collection,
        description=f"{collection.description}, {len(chosen):,} of them in {path.name}",
        videos=tuple(video for video in collection.videos if video.name in chosen),
    )


def find_class_index(folder: Path) -> Path | None:
    """UCF-101's class index in, beside or below a folder, if there is one."""
    near = (folder, folder.parent)
    places = [place / below / CLASS_INDEX for place in near for below in (".", "ucfTrainTestlist")]
    return next((place for place in places if place.is_file()), None)


def read_class_index(path: Path) -> tuple[str, ...]:
    """The names of classes, by number.

    Raises:
        InputError: it is no list of consecutive numbers from 1 and names.
    """
    names = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            raise InputError(f"line {number} of {path} must be '{len(names) + 1} NameOfTheClass', not {line.strip()!r}")
        names.append(fields[1])
    return tuple(names)


def _lines(path):
    """Pairs of a path and a class, or None."""
    lines = [line.strip() for line in _text(path).split("\n")]
    pairs = [_pair(line, path.parent) for line in lines if line and not line.startswith("#")]
    if not pairs:
        raise InputError(f"the list {path} names no videos")
    return pairs


def _pair(line, folder):
    """Paths may contain spaces: the last word is a class only behind the name of a file."""
    entry, *label = line.rsplit(maxsplit=1)
    whole = (folder / line).exists() or not Path(entry.rstrip(",")).suffix
    return (line, None) if whole or not label else (entry.rstrip(","), label[0])


def _by_number(label, classes):
    if label is not None and label.isdigit() and 1 <= int(label) <= len(classes):
        return classes[int(label) - 1]
    return label


def _text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text file, so it cannot be a list of videos") from None
