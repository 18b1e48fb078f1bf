"""Files by URI."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs

from engine.reading import has_siblings, read_uri


def test_a_file_has_the_same_bytes_by_uri_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    assert read_uri(path.as_uri()) == read_uri(str(path)) == b"bytes"


def test_all_files_of_a_bucket_are_read_through_one_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    bucket, opened = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), []

    def from_uri(uri: str) -> tuple[Any, str]:
        opened.append(uri)
        return bucket, "bucket"

    fake = SimpleNamespace(FileSystem=SimpleNamespace(from_uri=from_uri))
    monkeypatch.setattr("engine.reading.arrow_fs", fake)
    for number in range(3):
        (tmp_path / f"bucket/{number} .jpg").write_bytes(bytes(number))
        for region in ("one", "two"):
            uri = f"s3://one-client/{number}%20.jpg?region={region}"
            assert read_uri(uri) == bytes(number)
    assert opened == ["s3://one-client?region=one", "s3://one-client?region=two"]


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_large_folder_is_not_listed_for_each_file_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_uri: bool
) -> None:
    missing = (tmp_path / "missing.jpg").as_uri() if as_uri else str(tmp_path / "missing.jpg")
    monkeypatch.setattr(os, "listdir", pytest.fail)
    assert not has_siblings(missing)
    (tmp_path / "other.jpg").touch()
    assert has_siblings(missing)
    assert not has_siblings(f"{missing}/deeper.jpg")
