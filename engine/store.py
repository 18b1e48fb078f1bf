"""Where a run's files live: one folder on a disk, or one prefix of an object store.

Two ways to write, and no third. `publish` makes a new file appear whole or not at all, and the
first writer wins: it is how results come to exist. `replace` overwrites whole: for notes about a
run that nothing depends on. Readers never see a half-written file under either.

On a disk a file is written beside its final name, synced, and linked to it; a link refuses an
existing name where a rename would overwrite a rival's file in silence. An object store gets one
PUT right after a look whether the name is taken: pyarrow offers no conditional PUT, so of two
uploads at the same time the one that ends later wins. Both write the rows of the same plan, and the
manifest records the hash of what was there when the round was sealed.
"""

import errno
import io
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from pyarrow import fs as arrow_fs

from engine.errors import StorageError
from engine.reading import locate, patiently

STAGED_SUFFIX = ".staged"
STAGED_LIVE_SECONDS = 3600.0
"""Older strays of killed writers are swept when a run or an export starts."""
COMPLETE = ".complete"
"""Last file of a folder in an object store."""
REPLACE_ATTEMPTS = 3
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems say that know no links."""
Write = Callable[[BinaryIO], Any]
Content = bytes | mmap
T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    path: str
    """Relative to the store's root, with forward slashes."""
    size: int
    """Bytes."""
    modified: float
    """Seconds since the epoch."""


class Store(Protocol):
    uri: str

    def read(self, path: str) -> bytes: ...
    def open(self, path: str) -> Any:
        """A seekable binary file for pyarrow. FileNotFoundError when there is none."""

    def exists(self, path: str) -> bool: ...
    def folders(self, path: str) -> list[str]:
        """The folders right below a path, sorted; empty when there is none."""

    def list(self, folder: str = "") -> list[StoredFile]:
        """All published files below a folder, sorted by path; empty when there is no folder."""

    def publish(self, path: str, data: bytes) -> bool:
        """Create a file. False, and nothing changed, when it exists already."""

    def publish_written(self, path: str, write: Write) -> bool:
        """As `publish`, for content that a function writes."""

    def replace(self, path: str, data: bytes) -> None: ...
    def publish_folder(self, path: str, source: Path) -> bool:
        """Copy a finished local folder here as one. False when it is here already."""

    def has_folder(self, path: str) -> bool:
        """Whether a published folder is here, whole."""

    def fetch_folder(self, path: str) -> AbstractContextManager[Path]:
        """A local folder with the content of `path`: itself, or a copy that ends with the block."""

    def remove_folder(self, path: str) -> None:
        """Remove what nothing needs any more; fine when it is gone already."""

    def sweep(self, older_than_seconds: float) -> int:
        """Remove what killed writers left staged; returns how many files."""


def open_store(uri: str) -> Store:
    """The store at a local path or at any URI that pyarrow.fs understands (s3://, gs://, ...)."""
    if "://" not in uri:
        return LocalStore(Path(uri))
    try:
        filesystem, root = locate(uri)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot open {uri}: {error}; expected a path or a URI such as s3://bucket/run"
        ) from error
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return LocalStore(Path(root))
    return ObjectStore(filesystem, root, uri=uri)


class LocalStore:
    """A folder on a local or shared disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def open(self, path: str) -> Any:
        return arrow_fs.LocalFileSystem().open_input_file(str(self.root / path))

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def folders(self, path: str) -> list[str]:
        return _folders(arrow_fs.LocalFileSystem(), str(self.root), path)

    def list(self, folder: str = "") -> list[StoredFile]:
        return _list(arrow_fs.LocalFileSystem(), str(self.root), folder)

    def publish(self, path: str, data: bytes) -> bool:
        return self.publish_written(path, lambda file: file.write(data))

    def publish_written(self, path: str, write: Write) -> bool:
        with self._staged(path, write) as staged:
            return _link(staged, self.root / path)

    def replace(self, path: str, data: bytes) -> None:
        """Again where the folder went away meanwhile: another driver may be done with it."""
        for attempts_left in reversed(range(REPLACE_ATTEMPTS)):
            try:
                with (
                    self._staged(path, lambda file: file.write(data)) as staged,
                    _storage_errors(path),
                ):
                    staged.replace(self.root / path)
                    _sync((self.root / path).parent)
                return
            except StorageError as error:
                if not attempts_left or not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def publish_folder(self, path: str, source: Path) -> bool:
        final = self.root / path
        if final.exists():
            return False
        # A sibling first: `source` may lie on another disk, where a rename is a copy.
        beside = _staged_name(final)
        try:
            with _storage_errors(path):
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, beside)
                for item in (*beside.rglob("*"), beside):
                    _sync(item)
                try:
                    beside.rename(final)
                except OSError as error:
                    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                        return False
                    raise
                _sync(final.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return True

    def has_folder(self, path: str) -> bool:
        return (self.root / path).is_dir()

    def fetch_folder(self, path: str) -> AbstractContextManager[Path]:
        return nullcontext(self.root / path)

    def remove_folder(self, path: str) -> None:
        doomed = _staged_name(self.root / path)  # out of sight at once, swept if this is killed
        with _storage_errors(path, "remove"), suppress(FileNotFoundError):
            (self.root / path).rename(doomed)
            shutil.rmtree(doomed)

    def sweep(self, older_than_seconds: float) -> int:
        oldest = time.time() - older_than_seconds
        swept = 0
        for stray in self._strays():
            try:
                if stray.stat().st_mtime < oldest:
                    shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
                    swept += 1
            except FileNotFoundError:  # its writer was alive after all
                continue
        return swept

    def _strays(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.root):  # does not mind what vanishes meanwhile
            for name in (*folders, *files):
                if name.endswith(STAGED_SUFFIX):
                    yield Path(folder) / name
            folders[:] = [name for name in folders if not name.endswith(STAGED_SUFFIX)]

    @contextmanager
    def _staged(self, path: str, write: Write) -> Iterator[Path]:
        final = self.root / path
        staged = _staged_name(final)
        with _storage_errors(path):
            final.parent.mkdir(parents=True, exist_ok=True)
            file = staged.open("xb")
        try:
            try:
                write(cast(BinaryIO, _Sink(file, path)))
                with _storage_errors(path):
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                with _storage_errors(path):
                    file.close()  # writes what a failed write left in its buffer
            yield staged
        finally:
            staged.unlink(missing_ok=True)


class ObjectStore:
    """A prefix of a bucket, or of any pyarrow file system whose writes appear when closed."""

    def __init__(self, filesystem: Any, root: str, *, uri: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.uri = uri

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return patiently(lambda: bytes(file.read()), path)

    def open(self, path: str) -> Any:
        return patiently(lambda: self.filesystem.open_input_file(f"{self.root}/{path}"), path)

    def exists(self, path: str) -> bool:
        info = self._seen(lambda: self.filesystem.get_file_info(f"{self.root}/{path}"), path)
        return bool(info.type != arrow_fs.FileType.NotFound)

    def folders(self, path: str) -> list[str]:
        return self._seen(lambda: _folders(self.filesystem, self.root, path), path)

    def list(self, folder: str = "") -> list[StoredFile]:
        return self._seen(lambda: _list(self.filesystem, self.root, folder), folder)

    def publish(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        self.replace(path, data)
        return True

    def publish_written(self, path: str, write: Write) -> bool:
        """Looks twice: before `write`, to save its work, and after it, which may be minutes later.

        What is left is the upload itself: a rival's that ends while it lasts is overwritten.
        """
        if self.exists(path):
            return False
        with tempfile.TemporaryFile() as file:
            write(cast(BinaryIO, _Sink(file, path)))
            with _storage_errors(path):
                if self.exists(path):
                    return False
                file.flush()
                self._put(path, _content(file))
        return True

    def replace(self, path: str, data: bytes) -> None:
        with _storage_errors(path):
            self._put(path, data)

    def publish_folder(self, path: str, source: Path) -> bool:
        """File by file, then an empty one that says it is complete: stores know no folders."""
        if self.has_folder(path):
            return False
        for file in sorted(item for item in source.rglob("*") if item.is_file()):
            with file.open("rb") as stream, _storage_errors(path):
                self._put(f"{path}/{file.relative_to(source).as_posix()}", _content(stream))
        self.replace(f"{path}/{COMPLETE}", b"")
        return True

    def has_folder(self, path: str) -> bool:
        return self.exists(f"{path}/{COMPLETE}")

    @contextmanager
    def fetch_folder(self, path: str) -> Iterator[Path]:
        # Not for as long as this store lives: a worker is killed in the end, and cleans nothing up.
        with tempfile.TemporaryDirectory(prefix="sa-engine-") as copies:
            for stored in self.list(path):
                copy = Path(copies) / stored.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(self.read(stored.path))
            yield Path(copies) / path

    def remove_folder(self, path: str) -> None:
        with _storage_errors(path, "remove"), suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.root}/{path}")

    def sweep(self, older_than_seconds: float) -> int:
        return 0  # an unfinished PUT leaves no object

    def _seen(self, look: Callable[[], T], path: str) -> T:
        with _storage_errors(path or self.uri, "look for"):
            return patiently(look, path)

    def _put(self, path: str, data: Content) -> None:
        """Upload all or nothing.

        pyarrow's streams cannot be abandoned: however one is left, what was written to it by then
        becomes the object, be it nothing. So all is written at once, and in a thread, where no
        KeyboardInterrupt comes between: an interrupted process ends when its upload has.
        """
        full = f"{self.root}/{path}"
        with ThreadPoolExecutor(1) as thread:
            patiently(lambda: thread.submit(self._upload, full, data).result(), path)

    def _upload(self, full: str, data: Content) -> None:
        self.filesystem.create_dir(full.rsplit("/", 1)[0], recursive=True)
        with self.filesystem.open_output_stream(full) as stream:
            stream.write(data)


class _Sink(io.BufferedIOBase):
    """A file that says StorageError when it cannot be written.

    A function that writes may read images and run models between two writes; what goes wrong there
    is no fault of the storage and passes as it is.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _storage_errors(self._path):
            return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def _content(file: BinaryIO) -> Content:
    """All of a file, not read into memory. Of an empty one there is nothing to map."""
    if os.fstat(file.fileno()).st_size == 0:
        return b""
    return mmap(file.fileno(), 0, access=ACCESS_READ)


def _list(filesystem: Any, root: str, folder: str) -> list[StoredFile]:
    base = f"{root}/{folder}".rstrip("/")
    selector = arrow_fs.FileSelector(base, allow_not_found=True, recursive=True)
    files = [
        StoredFile(info.path[len(root) :].lstrip("/"), info.size, (info.mtime_ns or 0) / 1e9)
        for info in filesystem.get_file_info(selector)
        if info.type == arrow_fs.FileType.File
    ]
    published = (file for file in files if not _is_staged(file.path))
    return sorted(published, key=lambda file: file.path)


def _folders(filesystem: Any, root: str, path: str) -> list[str]:
    selector = arrow_fs.FileSelector(f"{root}/{path}", allow_not_found=True)
    found = filesystem.get_file_info(selector)
    paths = [info.path[len(root) :].lstrip("/") for info in found if not info.is_file]
    return sorted(folder for folder in paths if not _is_staged(folder))


def _is_staged(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is not yet published."""
    return any(part.endswith(STAGED_SUFFIX) for part in path.split("/"))


def _staged_name(final: Path) -> Path:
    """Hidden, so that no reader of the folder takes it for data."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex}{STAGED_SUFFIX}")


def _link(staged: Path, final: Path) -> bool:
    """Give a finished file its name. False when another writer was first."""
    try:
        os.link(staged, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise StorageError(f"cannot publish {final}: {error.strerror}") from error
        # A file system without links (exFAT, some FUSE mounts): as weak as an object store.
        if final.exists():
            return False
        staged.rename(final)
    _sync(final.parent)
    return True


def _sync(path: Path) -> None:
    """Of a file its content, of a folder its names: a crash may lose either without."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(path: str, action: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot {action} {path}: {reason} (on {platform.node()}); mend the storage and run "
            "the same command again"
        ) from error
