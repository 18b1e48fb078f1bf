"""The contract of a store, on a disk and on an object store; then what a disk adds to it."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any, BinaryIO

import pytest
from pyarrow import fs

from engine.errors import StorageError
from engine.reading import STORE_PAUSES_SECONDS
from engine.store import STAGED_SUFFIX, LocalStore, ObjectStore, Store, open_store


@pytest.fixture(params=["disk", "object store", "object store in a part of another"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return LocalStore(tmp_path / "run")
    local = fs.LocalFileSystem()
    if request.param == "object store":
        return ObjectStore(local, str(tmp_path / "run"), uri="test://run")
    return ObjectStore(fs.SubTreeFileSystem(str(tmp_path), local), "bucket/run/", uri="test://run")


@pytest.fixture
def disk(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "run")


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def make_folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "a.txt").write_text(text)
    (path / "inner/b.txt").write_text(text * 2)
    return path


def test_what_is_published_can_be_read(store: Store) -> None:
    assert store.publish("deep/er/file.bin", b"one")
    assert store.exists("deep/er/file.bin")
    assert store.read("deep/er/file.bin") == b"one"
    with store.open("deep/er/file.bin") as file:
        file.seek(1)
        assert file.read() == b"ne"


def test_the_first_writer_wins_and_its_bytes_stay(store: Store) -> None:
    assert store.publish("file", b"first")
    assert not store.publish("file", b"second")
    assert not store.publish_written("file", lambda file: file.write(b"third"))
    assert store.read("file") == b"first"


def test_content_can_be_written_piece_by_piece(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        for piece in (b"a", b"", b"bc" * 100_000):
            file.write(piece)
        assert file.tell() == 200_001

    assert store.publish_written("file", write)
    assert store.read("file") == b"a" + b"bc" * 100_000


def test_a_writer_that_fails_leaves_nothing_and_is_not_blamed_on_the_storage(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("the photograph cannot be read")

    with pytest.raises(OSError, match="the photograph cannot be read"):
        store.publish_written("file", write)
    assert not store.exists("file")
    assert store.list() == []
    assert store.publish("file", b"later")


def test_what_a_rival_published_while_it_was_written_stays(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"slow")
        assert store.publish("file", b"first")

    assert not store.publish_written("file", write)
    assert store.read("file") == b"first"


def test_an_object_store_has_nothing_written_under_a_name_that_is_taken(tmp_path: Path) -> None:
    store = ObjectStore(fs.LocalFileSystem(), str(tmp_path / "run"), uri="test://run")
    store.publish("file", b"first")
    assert not store.publish_written("file", lambda file: pytest.fail("minutes for nothing"))


class ThrottledFiles:
    """A bucket that refuses so many requests."""

    def __init__(self, failures: int) -> None:
        self.files, self.failures = fs.LocalFileSystem(), failures

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self.files, name)
        if name not in ("open_output_stream", "open_input_file", "get_file_info"):
            return asked

        def throttled(path: Any) -> Any:
            self.failures -= 1
            if self.failures >= 0:
                raise OSError("AWS Error SLOW_DOWN: please reduce your request rate")
            return asked(path)

        return throttled


def test_what_a_throttled_object_store_refuses_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.reading.time.sleep", lambda _: None)
    files, patience = ThrottledFiles(0), len(STORE_PAUSES_SECONDS)
    store = ObjectStore(files, str(tmp_path / "run"), uri="test://run")
    files.failures = patience
    store.replace("folder/file", b"content")
    files.failures = patience
    assert store.read("folder/file") == b"content"
    for look in (store.exists, store.list, store.folders):
        files.failures = patience
        look("folder")
        files.failures = patience + 1
        with pytest.raises(StorageError, match="cannot look for other: AWS Error SLOW_DOWN"):
            look("other")
    files.failures = patience + 1
    with pytest.raises(StorageError, match="cannot write other: AWS Error SLOW_DOWN"):
        store.replace("other", b"content")


class InterruptedFiles:
    """A bucket: what a stream holds when it is closed, for whatever reason, is the object.

    Its user presses Ctrl-C when a stream is opened, or after its first write.
    """

    def __init__(self, when: str) -> None:
        self.files, self.when = fs.LocalFileSystem(), when

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator["InterruptedFiles"]:
        self.stream = BytesIO()
        try:
            self.interrupt("opened")
            yield self
        finally:
            staged = Path(path + STAGED_SUFFIX)
            staged.write_bytes(self.stream.getvalue())
            staged.rename(path)

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.interrupt("written")

    def interrupt(self, now: str) -> None:
        if now == self.when:
            self.when = "never again"
            os.kill(os.getpid(), signal.SIGINT)


LARGE = bytes(20 * 2**20)


@pytest.mark.parametrize("when", ["opened", "written"])
@pytest.mark.parametrize(
    "publish",
    [
        lambda store, file: store.publish(file.name, LARGE),
        lambda store, file: store.replace(file.name, LARGE),
        lambda store, file: store.publish_written(file.name, lambda sink: sink.write(LARGE)),
        lambda store, file: store.publish_folder("", file.parent),
    ],
    ids=["publish", "replace", "publish_written", "publish_folder"],
)
def test_an_interrupted_upload_is_whole_or_not_there(
    tmp_path: Path, publish: Callable[[ObjectStore, Path], object], when: str
) -> None:
    file = tmp_path / "new/file"
    file.parent.mkdir()
    file.write_bytes(LARGE)
    store = ObjectStore(InterruptedFiles(when), str(tmp_path / "run"), uri="test://run")
    with pytest.raises(KeyboardInterrupt):
        publish(store, file)
    assert [stored.size for stored in store.list()] in ([], [len(LARGE)])
    assert not store.has_folder("")


def test_a_file_of_nothing_can_be_published(store: Store, tmp_path: Path) -> None:
    assert store.publish_written("file", lambda file: None)
    assert store.publish_folder("folder", make_folder(tmp_path / "new", ""))
    assert [stored.size for stored in store.list()] == [0] * len(store.list())
    assert store.read("folder/inner/b.txt") == b""


def test_replacing_overwrites(store: Store) -> None:
    store.replace("notes/a", b"old")
    store.replace("notes/a", b"newer")
    assert store.read("notes/a") == b"newer"
    assert [stored.path for stored in store.list()] == ["notes/a"]


@pytest.mark.parametrize("method", ["read", "open"])
def test_what_does_not_exist_is_not_found(store: Store, method: str) -> None:
    assert not store.exists("nothing")
    with pytest.raises(FileNotFoundError):
        getattr(store, method)("nothing")


def test_a_listing_is_sorted_and_relative_to_the_root(store: Store) -> None:
    for path in ("b/2", "b/10", "a", "b/c/d", "bb"):
        store.publish(path, path.encode())
    assert [stored.path for stored in store.list()] == ["a", "b/10", "b/2", "b/c/d", "bb"]
    assert [stored.path for stored in store.list("b")] == ["b/10", "b/2", "b/c/d"]
    assert [stored.size for stored in store.list("b")] == [4, 3, 5]
    assert all(abs(stored.modified - time.time()) < 60 for stored in store.list())


def test_a_folder_that_does_not_exist_has_no_files(store: Store) -> None:
    assert store.list() == []
    assert store.list("nowhere") == []


def test_a_folder_is_published_once_and_fetched_whole(store: Store, tmp_path: Path) -> None:
    assert not store.has_folder("checkpoints/one")
    assert store.publish_folder("checkpoints/one", make_folder(tmp_path / "new", "x"))
    assert store.has_folder("checkpoints/one")
    assert not store.publish_folder("checkpoints/one", make_folder(tmp_path / "other", "y"))
    with store.fetch_folder("checkpoints/one") as fetched:
        assert fetched.name == "one"
        assert (fetched / "a.txt").read_text() == "x"
        assert (fetched / "inner/b.txt").read_text() == "xx"
    assert (tmp_path / "new/a.txt").exists()  # the source is the caller's


def test_a_fetched_folder_leaves_no_copy_and_the_published_one_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    store.publish_folder("checkpoints/one", make_folder(tmp_path / "new", "x"))
    for _ in range(2):
        with store.fetch_folder("checkpoints/one") as fetched:
            assert (fetched / "inner/b.txt").read_text() == "xx"
    with pytest.raises(ValueError, match="damaged"), store.fetch_folder("checkpoints/one"):
        raise ValueError("damaged")
    assert files_below(tmp_path / "copies") == []
    assert store.has_folder("checkpoints/one")
    assert store.read("checkpoints/one/a.txt") == b"x"


def test_a_folder_that_nothing_needs_is_removed_whole_and_a_second_time_too(store: Store) -> None:
    for path in ("kinds/one/a/file", "kinds/one/file", "kinds/two/file", "kinds/file"):
        store.publish(path, b"x")
    assert store.folders("kinds") == ["kinds/one", "kinds/two"]
    assert store.folders("nowhere") == []
    store.remove_folder("kinds/one")
    store.remove_folder("kinds/one")
    assert store.folders("kinds") == ["kinds/two"]
    assert [file.path for file in store.list()] == ["kinds/file", "kinds/two/file"]


def test_a_root_that_looks_staged_hides_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / f"photos{STAGED_SUFFIX}" / "run")
    store.publish("my.staged.jpg", b"a photograph")
    assert [stored.path for stored in store.list()] == ["my.staged.jpg"]


def test_staged_files_are_never_listed(disk: LocalStore) -> None:
    seen: list[str] = []

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        seen.extend(stored.path for stored in disk.list())
        assert len(files_below(disk.root)) == 1

    disk.publish_written("shards/one", write)
    assert seen == []
    assert files_below(disk.root) == ["shards/one"]


def test_a_folder_made_meanwhile_by_somebody_else_stays(
    disk: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = make_folder(tmp_path / "mine", "m"), make_folder(tmp_path / "theirs", "t")
    rename = Path.rename

    def theirs_first(staged: Path, final: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert disk.publish_folder("one", theirs)
        return rename(staged, final)

    monkeypatch.setattr(Path, "rename", theirs_first)
    assert not disk.publish_folder("one", mine)
    assert disk.read("one/a.txt") == b"t"
    assert files_below(disk.root) == ["one/a.txt", "one/inner/b.txt"]


def test_sweeping_removes_old_strays_only(disk: LocalStore) -> None:
    disk.publish("file", b"stays")
    old = [disk.root / f"old{STAGED_SUFFIX}", disk.root / f"folder{STAGED_SUFFIX}"]
    old[0].write_bytes(b"x")
    make_folder(old[1], "x")
    (disk.root / f"young{STAGED_SUFFIX}").write_bytes(b"y")
    for path in (*old, disk.root / "file"):
        os.utime(path, (time.time() - 5000,) * 2)
    assert disk.sweep(older_than_seconds=3600) == 2
    assert files_below(disk.root) == ["file", f"young{STAGED_SUFFIX}"]
    assert disk.sweep(older_than_seconds=3600) == 0


def test_sweeping_a_store_that_does_not_exist_finds_nothing(store: Store) -> None:
    assert store.sweep(0) == 0


DIES_BEFORE_THE_LINK = """
import os, signal, sys
from pathlib import Path
from engine.store import LocalStore

def die(*_): os.kill(os.getpid(), signal.SIGKILL)
os.link = die
Path.rename = die
store, source = LocalStore(Path(sys.argv[1])), Path(sys.argv[2])
if source.is_file():
    store.publish("shards/one", source.read_bytes())
else:
    store.publish_folder("one", source)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_writer_killed_before_its_link_leaves_nothing_to_see(
    disk: LocalStore, tmp_path: Path, what: str
) -> None:
    source = make_folder(tmp_path / "source", "x")
    given = source / "a.txt" if what == "file" else source
    died = subprocess.run([sys.executable, "-c", DIES_BEFORE_THE_LINK, disk.root, given])
    assert died.returncode == -signal.SIGKILL
    assert len(files_below(disk.root)) > 0
    assert disk.list() == []
    assert not disk.exists("shards/one")
    assert not disk.exists("one")
    assert disk.sweep(0) == 1
    assert files_below(disk.root) == []
    assert disk.publish("shards/one", b"again")


RACES = """
import sys, time
from pathlib import Path
from engine.store import LocalStore

root, name = Path(sys.argv[1]), sys.argv[2]
store = LocalStore(root)
(root / f"ready-{name}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
print(*(i for i in range(40) if store.publish(f"raced/{i}", name.encode() * 1000)))
"""


def test_of_many_processes_that_publish_the_same_files_one_wins_each(disk: LocalStore) -> None:
    disk.root.mkdir()
    names = ["a", "b", "c", "d"]
    racers = {
        name: subprocess.Popen(
            [sys.executable, "-c", RACES, disk.root, name], stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    while len(list(disk.root.glob("ready-*"))) < len(names):
        assert all(racer.poll() is None for racer in racers.values())
        time.sleep(0.01)
    (disk.root / "go").touch()
    won = {name: racer.communicate()[0].split() for name, racer in racers.items()}
    assert sorted(int(i) for wins in won.values() for i in wins) == list(range(40))
    for name, wins in won.items():
        assert all(disk.read(f"raced/{i}") == name.encode() * 1000 for i in wins)
    assert [file for file in files_below(disk.root) if file.endswith(STAGED_SUFFIX)] == []


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As a full disk: writes beyond the limit are refused, for whoever may do anything else."""
    soft, hard = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))


def exercise_full_disk(store: LocalStore, source: Path) -> None:
    large = b"x" * 200_000
    assert store.publish("small", b"fits")
    with pytest.raises(StorageError, match=r"cannot write large: .*run the same command again"):
        store.publish("large", large)
    with pytest.raises(StorageError, match="cannot write small"):
        store.replace("small", large)
    with pytest.raises(StorageError, match="cannot write folder"):
        store.publish_folder("folder", source)
    assert files_below(store.root) == ["small"]
    assert store.read("small") == b"fits"
    assert store.publish("another", b"fits too")


def test_a_write_that_is_refused_half_way_is_a_storage_error(
    disk: LocalStore, tmp_path: Path
) -> None:
    source = make_folder(tmp_path / "source", "y" * 150_000)
    with no_file_larger_than(100_000):
        exercise_full_disk(disk, source)


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    mount = tmp_path / "small-disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(mount)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root; the test before this one needs nothing")
    try:
        exercise_full_disk(LocalStore(mount), make_folder(tmp_path / "source", "y" * 150_000))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_file_where_a_folder_should_be_is_a_storage_error(disk: LocalStore) -> None:
    disk.publish("file", b"")
    with pytest.raises(StorageError, match="cannot write file/inner"):
        disk.publish("file/inner", b"")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_file_system_without_links_still_refuses_a_second_writer(
    disk: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert disk.publish("file", b"first")
    assert not disk.publish("file", b"second")
    assert files_below(disk.root) == ["file"]
    assert disk.read("file") == b"first"


def test_what_is_replaced_while_its_folder_is_removed_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is done removes the folder in which a slower one still keeps its state."""
    disk, sync, removals = LocalStore(tmp_path), os.fsync, [1, 1]

    def removing(descriptor: int) -> None:
        if removals:
            removals.pop()
            disk.remove_folder("training")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", removing)
    disk.replace("training/state.pt", b"state")
    assert disk.read("training/state.pt") == b"state"
    removals[:] = [1] * 9
    with pytest.raises(StorageError, match=r"cannot write training/state\.pt: No such file"):
        disk.replace("training/state.pt", b"state")
    assert not list(tmp_path.rglob("*.staged"))


def test_local_uris_and_paths_open_the_same_store(tmp_path: Path) -> None:
    open_store(str(tmp_path)).publish("file", b"bytes")
    store = open_store(f"file://{tmp_path}")
    assert isinstance(store, LocalStore)
    assert store.read("file") == b"bytes"


def test_a_uri_that_nobody_understands_is_refused_with_what_was_expected() -> None:
    with pytest.raises(StorageError, match=r"cannot open gopher://x/y: .* expected a path"):
        open_store("gopher://x/y")


@pytest.mark.parametrize("path", ["", "/", "/run", "/run/", "/a%20b/%25.jpg"])
@pytest.mark.parametrize("bucket", ["s3://bucket", "s3://key:se%2Fcret@bucket", "gs://bucket"])
def test_a_path_in_a_bucket_is_found_as_pyarrow_does(bucket: str, path: str) -> None:
    uri = f"{bucket}{path}" + ("?region=eu-west-1" if bucket.startswith("s3") else "")
    store = open_store(uri)
    assert isinstance(store, ObjectStore)
    assert store.root == fs.FileSystem.from_uri(uri)[1]
