"""Folders that are packed into one file: ``.zip``, and ``.tar`` also compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from fedquilt.core.errors import DataError
from fedquilt.data.limits import refuse_bomb
from fedquilt.data.readers.raw_columns import Origin, Raw

ENDS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""The ends of their names."""

MOST_FILES = 1 << 20
"""Most files of one archive."""

_AT_ONCE = 1 << 20  # bytes that are copied at once
_MOST_HEADER = 1 << 20  # bytes of what stands before a file of a tar
_COMPRESSED: Mapping[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class _Member(NamedTuple):
    """A plain file of an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive."""
    return path.name.lower().endswith(ENDS)


def read_archive(path: Path, read: Callable[[Path], Mapping[str, Raw]]) -> dict[str, Raw]:
    """What ``read`` makes of the folder that is packed into an archive.

    The files are unpacked to a temporary folder that only this user can read, and which is removed with the last of the
    columns. Links and devices are left out, and no file is written outside of the folder, whatever its name. Rows and
    messages name the archive and the file in it.

    Raises
    ------
    DataError
        if the archive is damaged, encrypted, a decompression bomb, or has more than 2^20 files or one name twice.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedquilt-"))
    held = _Held(folder)
    try:
        _unpack(path, folder)
        return {split: _named(raw, held, path) for split, raw in read(folder).items()}
    except DataError as error:
        raise DataError(str(error).replace(str(folder), str(path))) from error


class _Held:
    """A temporary folder, removed with this object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def reading(self, read: Callable[[str], Any]) -> Callable[[str], Any]:
        """``read``, which keeps the folder."""
        return partial(self._column, read)  # of a method, so that it holds this object

    def _column(self, read: Callable[[str], Any], name: str) -> Any:
        return read(name)


class _Bounded:
    """The unpacked bytes of a tar, for ``tarfile``, which reads a header at once and skips what it does not know."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._packed = path, stream, path.stat().st_size
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise ValueError(f"a header in it has {size:,} bytes")
        return self._stream.read(size)

    def seek(self, place: int) -> int:
        refuse_bomb(self._path, self._packed, place)  # first: to skip is to unpack
        return self._stream.seek(place)


def _named(raw: Raw, held: _Held, path: Path) -> Raw:
    """The columns with rows that are located in the archive."""

    def of(file: str) -> str:
        return file.replace(str(held.folder), str(path))

    origin = Origin(tuple((of(file), unit) for file, unit in raw.origin.files), raw.origin.file, raw.origin.number)
    troubles = tuple(
        trouble._replace(location=trouble.location._replace(file=of(trouble.location.file))) for trouble in raw.troubles
    )
    return replace(raw, read=held.reading(raw.read), origin=origin, troubles=troubles)


def _unpack(path: Path, folder: Path) -> None:
    packed, unpacked, seen = path.stat().st_size, 0, set[str]()
    try:
        with _members(path) as members:
            for member in members:
                unpacked += member.size
                refuse_bomb(path, packed, unpacked)
                name = _safe(member.name)
                if name in seen or len(seen) == MOST_FILES:
                    what = f"holds '{name}' twice" if name in seen else f"holds more than {MOST_FILES:,} files"
                    raise DataError(f"{path}: {what}; pack the folder again")
                seen.add(name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, (folder / name).open("xb") as target:
                    _copy(source, target, member.size)
    except DataError:
        raise
    except Exception as error:  # zipfile, tarfile and their decompressors each have exceptions of their own
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"{path}: is no archive that can be read ({reason}); pack the folder again") from error


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy a member, which must have the size that it declares."""
    left = size
    while left and (part := source.read(min(left, _AT_ONCE))):
        target.write(part)
        left -= len(part)
    if left or source.read(1):
        raise ValueError("a file in it has not the size that it declares")


def _safe(name: str) -> str:
    """The name of a file inside of the folder.

    Raises
    ------
    ValueError
        if it would lie elsewhere.
    """
    made = PurePosixPath(name.replace("\\", "/"))
    if made.is_absolute() or ".." in made.parts or not made.parts or ":" in made.parts[0] or "\0" in name:
        raise ValueError(f"the file name {name!r} leads out of the archive")
    return str(made)


@contextmanager
def _members(path: Path) -> Iterator[Iterator[_Member]]:
    """The plain files of an archive."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as packed:
            yield _of_zip(packed)
    else:
        with path.open("rb") as file:
            begin = file.read(8)
        unpacked = next((opened for magic, opened in _COMPRESSED.items() if begin.startswith(magic)), open)
        with unpacked(path, "rb") as stream:
            bounded: Any = _Bounded(path, stream)
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                yield _of_tar(tar)


def _of_zip(packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        mode = info.external_attr >> 16
        if info.is_dir() or (mode & 0o170000) not in (0, 0o100000):  # a link, as zip of Unix writes it
            continue
        if info.flag_bits & 1:
            raise ValueError("its files are encrypted")
        yield _Member(info.filename, info.file_size, partial(packed.open, info))


def _of_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isreg():
            yield _Member(info.name, info.size, partial(_opened, tar, info))


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # it is a plain file
    return file
