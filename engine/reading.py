"""Files by URI: a local path, or anything that pyarrow.fs understands (s3://, gs://, ...).

Networks hiccup: what may come back is asked for again before it counts as out of reach.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from pyarrow import fs as arrow_fs

log = logging.getLogger(__name__)

READ_PAUSES_SECONDS = (0.5, 1.0)
"""After failed reads of a source's file; one more, and it counts as out of reach."""
STORE_PAUSES_SECONDS = (1.0, 5.0, 25.0)
"""The same of requests that an object store has refused."""
BUCKET_SCHEMES = ("gcs", "gs", "s3")
T = TypeVar("T")


def locate(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path there."""
    parts = urlsplit(uri)
    if parts.scheme not in BUCKET_SCHEMES:
        return cast(tuple[Any, str], arrow_fs.FileSystem.from_uri(uri))
    filesystem, bucket = _bucket(urlunsplit(parts._replace(path="", fragment="")))
    return filesystem, bucket + unquote(parts.path).rstrip("/")


@lru_cache(maxsize=32)
def _bucket(uri: str) -> tuple[Any, str]:
    """A client and the name of a bucket. It is kept, since each new one connects anew, and asks its
    machine for credentials: that costs more than an image."""
    return cast(tuple[Any, str], arrow_fs.FileSystem.from_uri(uri))


def read_uri(uri: str) -> bytes:
    """The bytes of one file, by local path or pyarrow.fs URI."""
    if "://" not in uri:
        return Path(uri).read_bytes()
    filesystem, path = locate(uri)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def read_patiently(uri: str) -> bytes:
    """As `read_uri`. Networks hiccup: nothing is given up for one failed read."""

    def will_be_so_again(error: OSError) -> bool:
        return is_no_file(error) or isinstance(error, PermissionError)

    return _asked(lambda: read_uri(uri), uri, READ_PAUSES_SECONDS, will_be_so_again)


def patiently(request: Callable[[], T], path: str) -> T:
    """Ask an object store again and again. What is a machine's own, and has a number, is not asked
    twice: no file, no right, no room."""
    return _asked(request, path, STORE_PAUSES_SECONDS, lambda error: error.errno is not None)


def _asked(
    request: Callable[[], T],
    what: str,
    pauses: tuple[float, ...],
    is_final: Callable[[OSError], bool],
) -> T:
    for pause in pauses:
        try:
            return request()
        except OSError as error:
            if is_final(error):
                raise
            log.info("%s: %s; asked again in %g s", what, error, pause)
            time.sleep(pause)
    return request()


def is_no_file(error: OSError | ValueError) -> bool:
    """Whether reading failed because no file is there, or none could be under such a name."""
    names = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError)
    return isinstance(error, names) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def has_siblings(uri: str) -> bool:
    """Whether anything can be seen in the folder of a file: not so where its disk is away."""
    try:
        if "://" not in uri:
            return _holds_anything(Path(uri).parent)
        filesystem, path = locate(uri)
        if isinstance(filesystem, arrow_fs.LocalFileSystem):
            return _holds_anything(Path(path).parent)
        folder = filesystem.get_file_info(path.rpartition("/")[0])  # in a bucket: of some key
        return bool(folder.type != arrow_fs.FileType.NotFound)
    except OSError:
        return False


def _holds_anything(folder: Path) -> bool:
    with os.scandir(folder) as entries:  # reads no more of a large one than it must
        return next(entries, None) is not None
