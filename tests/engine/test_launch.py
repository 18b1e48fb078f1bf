"""Launching against a real head: one for the whole file, since it takes seconds to start."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine import launch
from engine.errors import ConfigError, EngineError

HEAD_START_SECONDS = 90

# Ray's own client calls aiohttp in a way that aiohttp has come to frown upon.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")

# What the cluster runs in place of `sa-engine run`: tells how it was called, does as it is told.
STAND_IN = """
import sys, time
from pathlib import Path
import engine.errors

print("arguments", *sys.argv[2:])
print("code from here", Path(engine.errors.__file__).parent.parent == Path.cwd())
print("configuration", Path("run.yaml").read_text())
if sys.argv[1] == "count":
    for number in range(12):
        print("line", number, flush=True)
        time.sleep(0.25)
if sys.argv[1] == "sleep":
    print("sleeping", flush=True)
    time.sleep(600)
sys.exit(3 if sys.argv[1] == "fail" else 0)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of the dashboard of a Ray head of our own."""
    port, dashboard, agent, client = (_free_port() for _ in range(4))
    # A short path: Ray's sockets lie below it, and their names have 107 bytes at most.
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={port}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *("--min-worker-port=0", "--max-worker-port=0"),  # any free ones
                *("--num-cpus=1", f"--object-store-memory={80 * 2**20}", f"--temp-dir={folder}"),
            ],
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_until_up(address, process)
            yield address
        finally:
            _end_session(process)
        assert _session_pids(process.pid) == []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text("seed: 7")
    return str(path)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    path = tmp_path_factory.mktemp("stand_in") / "stand_in.py"
    path.write_text(STAND_IN)
    # As for `python -m engine.cli`, modules are looked for in the working directory first.
    return "env", "PYTHONPATH=.", sys.executable, str(path)


@pytest.fixture(scope="module")
def sleeper(head: str, config: str, stand_in: tuple[str, ...]) -> Iterator[str]:
    """A job that runs for ever into s3://b/run, unless a test stops it."""
    job = launch.submit(config, "s3://b/run", head, entrypoint=(*stand_in, "sleep"))
    yield job
    launch.stop(head, job)


@pytest.mark.ray
def test_the_shipped_code_runs_and_its_log_survives_a_lost_connection(
    head: str,
    config: str,
    stand_in: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # must not overrule the address given
    lines: list[str] = []
    with _Wire(head) as wire:

        def cut_once(line: str) -> None:
            lines.append(line)
            if line == "line 3" and lines.count(line) == 1:
                wire.cut()

        entrypoint = (*stand_in, "count")
        job = launch.submit(
            config, "runs/demo", wire.address, stage="semi_automatic", entrypoint=entrypoint
        )
        assert launch.follow(wire.address, job, cut_once) == 0
        assert wire.num_cuts == 1
    assert f"arguments run.yaml --out {tmp_path}/runs/demo --stage semi_automatic" in lines
    assert {"code from here True", "configuration seed: 7"} <= set(lines)
    assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(12)]
    assert lines[-1] == f"{job} succeeded"


@pytest.mark.ray
def test_a_second_run_into_a_folder_is_refused_and_told_what_to_do(
    head: str, config: str, sleeper: str
) -> None:
    told = f"into s3://b/run is under way as {sleeper}; follow it with .* --follow {sleeper}', stop"
    with pytest.raises(EngineError, match=told):
        launch.submit(config, "s3://b/run/", head)


@pytest.mark.ray
def test_ctrl_c_ends_the_following_and_not_the_job(head: str, sleeper: str) -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line == "sleeping":
            signal.raise_signal(signal.SIGINT)

    assert launch.follow(head, sleeper, interrupt) == launch.INTERRUPTED
    assert lines[-1].startswith(f"{sleeper} goes on without us; follow it with")
    assert f"--stop {sleeper}" in lines[-1]


@pytest.mark.ray
def test_a_head_that_stays_away_ends_the_following_with_what_to_do(head: str, sleeper: str) -> None:
    with _Wire(head) as wire:

        def take_away(line: str) -> None:
            if line == "sleeping":
                wire.close()

        with pytest.raises(EngineError, match=f"lost sight of {sleeper}: no answer .* go on"):
            launch.follow(wire.address, sleeper, take_away, patience_seconds=0.5)


@pytest.mark.ray
def test_stopping_a_run_makes_room_for_the_next_whose_exit_status_is_passed_on(
    head: str, config: str, stand_in: tuple[str, ...], sleeper: str
) -> None:
    lines: list[str] = []
    assert launch.stop(head, sleeper) is True
    assert launch.follow(head, sleeper, lines.append) == launch.STOPPED
    assert lines[-1].startswith(f"{sleeper} was stopped")
    assert launch.stop(head, sleeper) is False

    again = launch.submit(config, "s3://b/run", head, entrypoint=(*stand_in, "fail"))
    assert (sleeper[-2:], again) == ("-1", sleeper[:-1] + "2")
    assert launch.follow(head, again, lines.append) == 3
    assert lines[-1].startswith(f"{again} failed with exit status 3; ")


@pytest.mark.ray
def test_a_job_that_the_cluster_does_not_know_is_one_clear_line(head: str) -> None:
    with pytest.raises(launch.UnknownJobError, match="knows no job sa-nothing-1"):
        launch.follow(head, "sa-nothing-1", print)
    with pytest.raises(launch.UnknownJobError, match="launch the run again"):
        launch.stop(head, "sa-nothing-1")


@pytest.mark.parametrize(
    "address",
    ["ray://head:10001", "head:8265", "auto", "", "http://", "http://head:port", "s3://bucket"],
)
def test_what_is_no_address_of_a_dashboard_is_refused(address: str, config: str) -> None:
    with pytest.raises(EngineError, match=r"http://HEAD:8265") as caught:
        launch.submit(config, "runs/demo", address)
    assert repr(address) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_where_nothing_listens_is_refused_at_once(config: str) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer from http://127.0.0.1:\d+ .*refused"):
        launch.submit(config, "runs/demo", f"http://127.0.0.1:{_free_port()}")
    assert time.monotonic() - started < 3


def test_a_server_that_accepts_and_says_nothing_is_given_up(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(EngineError, match=r"no answer from .*timed out"):
            launch.submit(config, "runs/demo", address)


def test_a_web_server_that_is_no_dashboard_is_told_apart(config: str) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _NotFound) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(EngineError, match="not Ray's dashboard"):
                launch.submit(config, "runs/demo", address)
        finally:
            server.shutdown()
            thread.join()


def test_a_configuration_is_a_file_or_one_that_comes_with_the_project(
    tmp_path: Path, config: str
) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at nowhere\.yaml"):
        launch.stage_code(tmp_path / "a", "nowhere.yaml")
    assert launch.stage_code(tmp_path / "b", config) == "run.yaml"
    assert (tmp_path / "b" / "run.yaml").read_text() == "seed: 7"
    assert (tmp_path / "b" / "engine" / "launch.py").is_file()
    assert not list((tmp_path / "b").rglob("__pycache__"))


def test_code_too_large_for_ray_names_the_file_to_move(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MAX_CODE_BYTES", 1000)
    with pytest.raises(EngineError, match=r"more than .* that Ray takes; move /"):
        launch.stage_code(tmp_path, config)


def test_a_log_read_again_from_its_start_is_printed_once() -> None:
    lines: list[str] = []
    log = launch.Log(lines.append)
    text = "one\ntwo\nthree\nfour"
    for end in (0, 5, 5, 3, 12, len(text)):
        log.rewind()
        for start in range(0, end, 4):
            log.add(text[start : min(start + 4, end)])
    assert lines == ["one", "two", "three"]
    log.end()
    log.end()
    assert lines == ["one", "two", "three", "four"]


class _NotFound(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


class _Wire:
    """A wire to a server, which can be cut: its connections break off, new ones go through."""

    def __init__(self, address: str) -> None:
        self._server = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_cuts = 0

    def __enter__(self) -> "_Wire":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        self.num_cuts += 1
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._server)
                self._ends += (near, far)
                for source, target in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pass_on, args=(source, target))
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def _free_port() -> int:
    """Of the system's own range, which Ray's worker ports (10002-19999) do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + HEAD_START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            launch.stop(address, "sa-nobody-0")
        except launch.UnknownJobError:
            return  # it knows which jobs there are: it is up
        except EngineError:
            time.sleep(0.2)
    raise RuntimeError(f"no Ray head within {HEAD_START_SECONDS} s")


def _session_pids(session: int) -> list[int]:
    """Processes of a session that are alive; Ray gives some of its children groups of their own."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """Ask the head to end, as `ray.md` advises; kill what of its children has not gone with it."""
    process.terminate()
    deadline = time.monotonic() + 20
    while _session_pids(process.pid) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.1)
    for pid in _session_pids(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
