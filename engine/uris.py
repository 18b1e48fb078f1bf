"""Names of files: local paths and pyarrow.fs URIs, joined and taken apart alike.

A path is written as it is. In a URI a name is percent-encoded, and stands before the query that
carries an object store's options (`s3://bucket/images?region=eu-west-1`).
"""

from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit


def is_uri(text: str) -> bool:
    return "://" in text


def child_uri(folder: str, name: str) -> str:
    """A file named relative to a folder; a name that is absolute or a URI stands for itself."""
    if is_uri(name):
        return name
    if not is_uri(folder) or name.startswith("/"):
        return str(Path(folder).absolute() / name)
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def parent_uri(uri: str) -> str:
    if not is_uri(uri):
        return str(Path(uri).absolute().parent)
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def path_of(uri: str) -> PurePosixPath:
    """Bucket and path of a URI, or the path itself, for its name and suffix."""
    if not is_uri(uri):
        return PurePosixPath(uri)
    parts = urlsplit(uri)
    return PurePosixPath(parts.netloc + unquote(parts.path))
