"""A run as a job on a Ray cluster: submit it, follow it, stop it.

The job is `sa-engine run` on the cluster's head. It brings a copy of this project's code and of
its configuration with it, so the cluster runs what was launched, whatever it has installed itself,
and needs only the dependencies.

A job's id is made from the folder that the run writes to, and Ray refuses an id twice: one folder
never has two drivers. Once a job has ended, the next one into its folder gets the next number.
Going on with a run is launching it again.
"""

import asyncio
import hashlib
import http.client
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from engine.errors import ConfigError, EngineError
from engine.uris import is_uri

ENTRYPOINT = ("python", "-m", "engine.cli", "run")
PACKAGES = ("configs", "engine", "model", "stages")
MAX_CODE_BYTES = 500 * 2**20
"""Ray takes no larger package; the head keeps it in memory and every node fetches it once."""

ANSWER_SECONDS = 5.0
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""A log silent for so long may hang on a dead connection: look, and read on over a new one."""
PATIENCE_SECONDS = 120.0
STOP_SECONDS = 60.0

INTERRUPTED = 130  # what a shell reports of SIGINT
STOPPED = 143  # and of SIGTERM

# They tell of every upload and every closed connection; what matters of it is said here.
_TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
for _name in _TALKATIVE:
    logging.getLogger(_name).setLevel(logging.WARNING)


class UnknownJobError(EngineError):
    """The cluster knows no job of this id: mistyped, or the head was started anew since."""


def submit(
    config: str,
    out: str,
    address: str,
    *,
    stage: str | None = None,
    entrypoint: Sequence[str] = ENTRYPOINT,
) -> str:
    """Start a run on a cluster; returns the id of its job, which does not depend on us any more.

    Args:
        config: a YAML file, or by its bare name one that comes with the project.
        out: the run's folder, as the cluster's machines reach it: a path on a disk that they share,
            or a URI such as s3://bucket/run. A relative path is taken from the working directory.
        address: of the head's dashboard, http://HEAD:8265.
        stage: run the rounds of this stage only.
        entrypoint: the command that is given the configuration, `--out` and `--stage`.
    """
    out = out.rstrip("/") if is_uri(out) else str(Path(out).absolute())
    client = _connect(address)
    job_id = _next_job_id(client, address, out)
    with tempfile.TemporaryDirectory(prefix="sa-engine-") as folder:
        staged_config = stage_code(Path(folder), config)
        command = [*entrypoint, staged_config, "--out", out, *(["--stage", stage] if stage else [])]
        with _engine_errors(f"submit {job_id} to {address}"):
            try:
                client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=job_id,
                    runtime_env={"working_dir": folder, "env_vars": _terminal()},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # another launch was quicker than this one
                    raise _busy(address, job_id, out) from error
                raise
    return job_id


def follow(
    address: str,
    job_id: str,
    print_line: Callable[[str], None],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """Print a job's log from its start until the job ends, over lost connections too.

    Ctrl-C ends the following, never the job.

    Returns:
        The exit status of the run; 128 + the number of the signal that ended it; 143 when the job
        was stopped; 130 after Ctrl-C.
    """
    client = _connect(address)
    log = Log(print_line)
    try:
        details = asyncio.run(_watch(client, address, job_id, log, patience_seconds))
    except KeyboardInterrupt:
        log.end()
        print_line(f"{job_id} goes on without us; {_commands(address, job_id)}")
        return INTERRUPTED
    log.end()
    status = _exit_status(details)
    print_line(_epitaph(job_id, details, status))
    return status


def stop(address: str, job_id: str) -> bool:
    """Stop a job and wait until it has ended. False when it had ended before."""
    client = _connect(address)
    if _details(client, address, job_id).status.is_terminal():
        return False
    with _engine_errors(f"stop {job_id}"):
        client.stop_job(job_id)
    deadline = time.monotonic() + STOP_SECONDS
    while not _details(client, address, job_id).status.is_terminal():
        if time.monotonic() > deadline:
            raise EngineError(
                f"{job_id} was told to stop {STOP_SECONDS:.0f} s ago and still runs; "
                f"{_commands(address, job_id)}"
            )
        time.sleep(RETRY_SECONDS / 2)
    return True


# Submitting


def _next_job_id(client: JobSubmissionClient, address: str, out: str) -> str:
    """sa-<hash of the folder>-<number>; refused while an earlier number still runs.

    A number is never used twice: Ray does not support that, even for a job that was deleted.
    """
    name = f"sa-{hashlib.sha256(out.encode()).hexdigest()[:12]}"
    with _engine_errors(f"list the jobs of {address}"):
        jobs = client.list_jobs()
    last = 0
    for job in jobs:
        if found := re.fullmatch(rf"{name}-(\d+)", job.submission_id or ""):
            if not job.status.is_terminal():
                raise _busy(address, job.submission_id, out)
            last = max(last, int(found[1]))
    return f"{name}-{last + 1}"


def _busy(address: str, job_id: str, out: str) -> EngineError:
    return EngineError(f"a run into {out} is under way as {job_id}; {_commands(address, job_id)}")


def _commands(address: str, job_id: str) -> str:
    launch = f"sa-engine launch --address {address}"
    return f"follow it with '{launch} --follow {job_id}', stop it with '{launch} --stop {job_id}'"


def stage_code(folder: Path, config: str) -> str:
    """Copy what the job needs, and only that: Ray ships a whole folder.

    Returns:
        What the job calls its configuration.
    """
    project = Path(__file__).resolve().parents[1]
    packaged = (project / "configs" / f"{config}.yaml").is_file()
    if not packaged and not Path(config).is_file():
        raise ConfigError(f"no configuration at {config}: expected the path of a YAML file")
    files = [path for name in PACKAGES for path in (project / name).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_CODE_BYTES:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise EngineError(
            f"the code to send has {size >> 20} MiB, more than the {MAX_CODE_BYTES >> 20} that Ray "
            f"takes; move {largest} to where the cluster reads it, and name that path in {config}"
        )
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project / name, folder / name, ignore=ignore)
    return config if packaged else Path(shutil.copy(config, folder)).name


def _terminal() -> dict[str, str]:
    """A job has no terminal: let its tables be as wide as the one they will be read in."""
    return {"COLUMNS": str(shutil.get_terminal_size((120, 24)).columns)}


# Following


async def _watch(
    client: JobSubmissionClient, address: str, job_id: str, log: "Log", patience_seconds: float
) -> JobDetails:
    """Read the log until the job has ended, and connect again whenever it breaks off.

    A log that ends proves nothing, since Ray closes some lost connections like finished ones: only
    the job's status tells.
    """
    heard = time.monotonic()
    while True:
        complete = False
        with suppress(RuntimeError, OSError, aiohttp.ClientError):  # OSError covers timeouts
            await _read_log(client, job_id, log)
            complete = True
        try:
            details = _details(client, address, job_id)
        except UnknownJobError:
            raise
        except EngineError as error:
            if time.monotonic() - heard > patience_seconds:
                raise EngineError(
                    f"lost sight of {job_id}: {error}. It may go on: {_commands(address, job_id)}; "
                    "if the head died, start it and launch the run again"
                ) from error
        else:
            heard = time.monotonic()
            if details.status.is_terminal():
                if not complete:
                    _read_rest(client, job_id, log)
                return details
        await asyncio.sleep(RETRY_SECONDS)


async def _read_log(client: JobSubmissionClient, job_id: str, log: "Log") -> None:
    log.rewind()
    chunks = client.tail_job_logs(job_id)
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        log.add(chunk)


def _read_rest(client: JobSubmissionClient, job_id: str, log: "Log") -> None:
    """Print what a broken connection left unread; at worst it is gone with the job's node."""
    with suppress(RuntimeError, OSError):
        text = client.get_job_logs(job_id)
        log.rewind()
        log.add(text)


class Log:
    """Text that is read from its start again after each lost connection, and printed once."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print_line = print_line
        self._position = 0
        self._printed = 0
        self._unfinished = ""

    def rewind(self) -> None:
        self._position = 0

    def add(self, text: str) -> None:
        new = text[max(0, self._printed - self._position) :]
        self._position += len(text)
        self._printed = max(self._printed, self._position)
        *lines, self._unfinished = (self._unfinished + new).split("\n")
        for line in lines:
            self._print_line(line)

    def end(self) -> None:
        if self._unfinished:
            self._print_line(self._unfinished)
            self._unfinished = ""


def _exit_status(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED
    code = details.driver_exit_code
    if code is None:  # it never ran, or its node died under it
        return 1
    return int(code) if code > 0 else 128 - int(code)


def _epitaph(job_id: str, details: JobDetails, status: int) -> str:
    if status == 0:
        return f"{job_id} succeeded"
    again = "finished shards are kept, launch the run again to go on"
    if details.status == JobStatus.STOPPED:
        return f"{job_id} was stopped; {again}"
    reason = "" if details.driver_exit_code is not None else f": {_one_line(details.message or '')}"
    return f"{job_id} failed with exit status {status}{reason}; {again}"


# Talking to the head


def _connect(address: str) -> JobSubmissionClient:
    _require_dashboard(address)
    with _engine_errors(f"connect to {address}"), _without_ray_address():
        return JobSubmissionClient(address)


def _details(client: JobSubmissionClient, address: str, job_id: str) -> JobDetails:
    _require_dashboard(address)
    with _engine_errors(f"ask for {job_id}"):
        try:
            return client.get_job_info(job_id)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            raise UnknownJobError(
                f"{address} knows no job {job_id}; a cluster forgets its jobs when its head is "
                "started anew: if that is so, launch the run again, finished shards are kept"
            ) from error


def _require_dashboard(address: str) -> None:
    """Fail within seconds and in one line; Ray's own client waits for minutes, or for ever."""
    hint = "expected the head's dashboard, such as http://HEAD:8265"
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EngineError(f"cannot use {address!r} as the address of a cluster: {hint}")
    try:
        url = f"{address.rstrip('/')}/api/version"
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            is_ray = b"ray_version" in answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        is_ray = error.code in (401, 403)  # it wants a token, which Ray's client brings
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(
            f"no answer from {address} ({_one_line(str(error))}): {hint}; is the cluster up, and "
            "the port open or forwarded to here (ray dashboard cluster.yaml)?"
        ) from error
    if not is_ray:
        raise EngineError(
            f"what answers at {address} is not Ray's dashboard: {hint}, of a head that has "
            "ray[default] installed"
        )


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Ray would let these variables overrule the address that the user has typed."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _engine_errors(action: str) -> Iterator[None]:
    try:
        yield
    except RayError as error:  # the one that reaches a client of the dashboard
        raise EngineError(
            f"cannot {action}: it wants its token; set RAY_AUTH_MODE=token here and copy "
            "~/.ray/auth_token from the cluster's head"
        ) from error
    except (RuntimeError, OSError) as error:
        raise EngineError(f"cannot {action}: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    """An error's own line; of a traceback that came back from the cluster, its last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in text else " ".join(lines)
