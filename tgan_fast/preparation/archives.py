"""ZIP and TAR archives, whose files are read where they lie, without unpacking them."""

import errno
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tgan_fast.errors import InputError, first_line

# First bytes of compressed files, and the program that decompresses them.
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
# First bytes of a ZIP archive, and of one without files.
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC, _TAR_BLOCK = slice(257, 262), 512

# System that made an entry of a ZIP archive, and flags: names in UTF-8, and encryption.
_UNIX, _UTF_8, _ENCRYPTED = 3, 0x800, 0x1

# Fixed part of the header before the data of a ZIP archive's file, which ends with the lengths of its name and extras.
_LOCAL_HEADER = struct.Struct("<4s22xHH")

# A compressed file that is read into memory, and that holds more bytes than this for each stored byte, is no video.
_LARGEST_RATIO, _SMALL = 100, 64 << 20

_LINK = "it is a link: pack the file itself, as tar does with --dereference"


@dataclass(frozen=True, order=True)
class ArchivedFile:
    """A file in an archive, with the methods of a Path that reading needs; it is picklable, and holds no open file.

    Attributes:
        path: Path below the archive's root folder.
        archive: Archive.
        identity: Size and modification time of the archive when its list of files was read.
        start: Offset of the data, in a ZIP archive of the header before the data, in bytes.
        nbytes: Size of the file.
        zip_info: Entry in the list of a ZIP archive; None in a TAR archive.
    """

    path: PurePosixPath
    archive: Path = field(compare=False)
    identity: tuple[int, int] = field(compare=False)
    start: int = field(compare=False)
    nbytes: int = field(compare=False)
    zip_info: zipfile.ZipInfo | None = field(compare=False)

    def __str__(self) -> str:
        return str(self.archive / self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix

    def relative_to(self, root: "ArchiveFolder") -> PurePosixPath:
        return self.path

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        """Return the status of a file of which only the type and the size are known."""
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, self.nbytes, 0, 0, 0))

    def read_text(self, encoding: str, errors: str) -> str:
        with self.open("rb") as file:
            return file.read().decode(encoding, errors)

    def open(self, mode: str) -> io.BufferedReader:
        """Open the file for reading bytes at any place.

        A file that the archive compresses is decompressed into memory.

        Raises:
            OSError: The archive cannot be read or has changed, or the file is damaged.
        """
        archive = self.archive.open("rb")
        try:
            if _identity(archive) != self.identity:
                raise OSError(errno.ESTALE, "the archive has changed since its files were listed")
            if self.zip_info is None:
                return io.BufferedReader(_Section(self.name, archive, self.start, self.nbytes, None))
            start = _skip_local_header(archive, self.start)
            if self.zip_info.compress_type == zipfile.ZIP_STORED:
                return io.BufferedReader(_Section(self.name, archive, start, self.nbytes, self.zip_info.CRC))
            with archive:
                content = io.BytesIO(_decompress(archive, self.zip_info))
            return io.BufferedReader(_Section(self.name, content, 0, self.nbytes, None))
        except BaseException:
            archive.close()
            raise


@dataclass(frozen=True)
class ArchiveFolder:
    """The root folder of an archive.

    Attributes:
        archive: Archive.
        name: Name of the folder.
        files: Files below the folder, without hidden ones, by path.
        left_out: Paths of members that are not files with data of their own, each with the reason.
    """

    archive: Path
    name: str
    files: dict[PurePosixPath, ArchivedFile]
    left_out: dict[PurePosixPath, str]

    def __str__(self) -> str:
        return str(self.archive)

    @property
    def parent(self) -> Path:
        return self.archive.parent

    def joinpath(self, *parts: str) -> "ArchivedFile | Path":
        """Return a file, or a path that does not exist."""
        return self.files.get(PurePosixPath(*parts)) or self.archive.joinpath(*parts)


def open_archive(path: Path) -> ArchiveFolder | None:
    """Return the root folder of a ZIP or uncompressed TAR archive; None if a file is neither.

    If everything lies in one folder, that folder is the root.

    Raises:
        InputError: The archive is damaged, compressed as a whole, or encrypted, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head, identity = file.read(_TAR_BLOCK), _identity(file)
            list_files = _kind(path, file, head)
            if list_files is None:
                return None
            members = dict(_visible(list_files(path, file, identity)))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    # Damage makes zipfile and tarfile raise errors of many types.
    except (zipfile.BadZipFile, tarfile.TarError, ValueError, EOFError, struct.error, NotImplementedError) as error:
        raise InputError(
            f"the archive {path} is damaged or incomplete ({first_line(error)}): copy or download it again"
        ) from None
    return _root_folder(path, members)


def _kind(path, file, head):
    """Return the function that lists an archive's files; None if a file is, by content and name, no archive."""
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(
                f"{path} is compressed as a whole, so its files cannot be read one by one: "
                f"decompress it with {program}, and give the result"
            )
    suffix = path.suffix.lower()
    if head[_TAR_MAGIC] == b"ustar" or suffix == ".tar":
        return _tar_files
    if head.startswith(_ZIP) or suffix == ".zip" or zipfile.is_zipfile(file):
        return _zip_files
    return None


def _zip_files(path, file, identity) -> Iterator[tuple[PurePosixPath, ArchivedFile | str]]:
    """Yield the members that are not folders: path, and file or the reason for which it is left out."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    for info in members:
        # Only archives that were made on Unix have types of files.
        kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
        if info.is_dir() or kind not in (0, stat.S_IFREG, stat.S_IFLNK):
            continue
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"the archive {path} is encrypted: unpack it with its password, and give the folder")
        name = _path(_zip_name(info))
        if kind == stat.S_IFLNK:
            yield name, _LINK
        else:
            yield name, ArchivedFile(name, path, identity, info.header_offset, info.file_size, info)


def _zip_name(info):
    if info.flag_bits & _UTF_8:
        return info.filename
    if info.create_system == _UNIX:
        # On Unix, names are bytes, which zipfile decodes as if they came from MS-DOS.
        return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")
    return info.filename.replace("\\", "/")


def _tar_files(path, file, identity) -> Iterator[tuple[PurePosixPath, ArchivedFile | str]]:
    """Yield the members that are not folders: path, and file or the reason for which it is left out."""
    file.seek(0)
    files = {}
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            # The list of members, which tarfile keeps, would fill the memory.
            archive.members.clear()
            # A negative size leads back to an earlier header, without end.
            if info.size < 0:
                raise tarfile.ReadError(f"bad header at byte {info.offset:,}")
            name = _path(info.name)
            if info.issparse():
                yield name, "it is stored as a sparse file: pack it without --sparse"
            elif info.isreg():
                files[name] = ArchivedFile(name, path, identity, info.offset_data, info.size, None)
                yield name, files[name]
            elif info.islnk() and (target := files.get(_path(info.linkname))):
                files[name] = ArchivedFile(name, path, identity, target.start, target.nbytes, None)
                yield name, files[name]
            elif info.islnk() or info.issym():
                yield name, _LINK
        # A damaged header ends tarfile's list without an error.
        file.seek(archive.offset)
        if any(file.read(_TAR_BLOCK)):
            raise tarfile.ReadError(f"bad header at byte {archive.offset:,}")


def _path(name):
    """Return a member's path as it would be unpacked: below a folder, and encoded like the paths of files."""
    path = PurePosixPath(os.fsdecode(name.encode("utf-8", "surrogateescape")))
    return path.relative_to(path.anchor)


def _visible(members):
    """Yield the members that are not hidden, and the reason for each whose path leads out of its folder."""
    for path, member in members:
        if ".." in path.parts:
            yield path, "its path leads out of the archive"
        elif path.parts and not any(part.startswith(".") for part in path.parts):
            yield path, member


def _root_folder(archive, members):
    # A later member replaces an earlier one of the same path, as when unpacking.
    tops = {path.parts[0] for path in members}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in members):
        (name,) = tops
        members = {path.relative_to(name): member for path, member in members.items()}
    else:
        name = archive.resolve().stem
    files = {
        path: ArchivedFile(path, archive, member.identity, member.start, member.nbytes, member.zip_info)
        for path, member in members.items()
        if isinstance(member, ArchivedFile)
    }
    left_out = {path: reason for path, reason in members.items() if isinstance(reason, str)}
    return ArchiveFolder(archive, name, files, left_out)


def _identity(file):
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _skip_local_header(archive, offset):
    """Return the offset of a file's data in a ZIP archive, and move there."""
    archive.seek(offset)
    header = archive.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_ZIP[0]):
        raise OSError(errno.EIO, "its place in the archive is damaged")
    _, *lengths = _LOCAL_HEADER.unpack(header)
    return archive.seek(sum(lengths), os.SEEK_CUR)


def _decompress(archive, info):
    if info.file_size > max(_SMALL, _LARGEST_RATIO * info.compress_size):
        raise OSError(errno.EFBIG, f"it grows from {info.compress_size:,} to {info.file_size:,} bytes in memory")
    try:
        # It reads no more than the size that the archive states.
        content = zipfile.ZipExtFile(archive, "r", info).read()
    except MemoryError:
        raise
    except NotImplementedError:
        raise OSError(
            errno.ENOTSUP, "its compression method is not supported: unpack the archive, and give the folder"
        ) from None
    # Damaged data make decompressors raise errors of many types.
    except Exception as error:
        raise OSError(errno.EIO, f"its data in the archive are damaged ({first_line(error)})") from None
    if len(content) != info.file_size:
        raise OSError(errno.EIO, "its data in the archive are incomplete")
    return content


class _Section(io.RawIOBase):
    """A view of a part of an open file, with a checksum that is checked if all of it is read in order."""

    def __init__(self, name, file, start, nbytes, crc):
        # FFmpeg also recognizes formats by the ending of the name.
        self.name = name
        self._file, self._start, self._nbytes, self._crc = file, start, nbytes, crc
        self._position = self._checked = self._crc_so_far = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._nbytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)[: max(0, self._nbytes - self._position)]
        if not view:
            return 0
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view)
        if not count:
            raise OSError(errno.EIO, "the archive ends within it")
        if self._crc is not None and self._position == self._checked:
            self._checked += count
            self._crc_so_far = zlib.crc32(view[:count], self._crc_so_far)
            if self._checked == self._nbytes and self._crc_so_far != self._crc:
                raise OSError(errno.EIO, "its data in the archive are damaged (bad CRC-32)")
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
