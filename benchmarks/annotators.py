"""Many annotators at once against one annotation server, over HTTP, without a browser.

    python -m benchmarks.annotators --annotators 50 --minutes 3

A round of drawn scenes waits for people; its server runs in a process of its own. Every scripted
annotator signs in and then, until the time is over, does what the page does: claims a task, fetches
image and embedding, asks the decoder of the server, saves masks, renews, submits. Printed: calls
a second, and for every call its number, median and 95th percentile in milliseconds; and that every
mask that was saved is in the queue once, under its annotator.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from engine.config import parse_config
from engine.errors import EngineError
from engine.machines import LocalMachines
from engine.progress import Progress
from engine.rounds import run_rounds
from engine.run import tasks_url
from engine.store import Store, open_store
from engine.task_tables import TaskKind
from stages.rle import encode_rle
from web.accounts import Accounts, Role
from web.desk import Desk

CONFIG = """
name: annotators
checkpoint: sa-tiny
sources: [{{kind: scenes, name: scenes, count: {images}, seed: 0, size_hw: [240, 320]}}]
corpus: {{held_out_fraction: 0}}
rounds: [{{stage: assisted_manual, source: scenes, annotator: people, retrain: false}}]
images_per_shard: 16
"""
MASKS_PER_TASK = 4
HEADER = {"X-SA-Engine": "1"}


class Clock:
    """Milliseconds of every call, by kind."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.first = self.last = time.monotonic()
        self._writing = threading.Lock()

    def call(self, name: str, request: Any, *arguments: Any, **keywords: Any) -> httpx.Response:
        started = time.monotonic()
        answer: httpx.Response = request(*arguments, **keywords)
        with self._writing:
            self.last = time.monotonic()
            self.milliseconds[name].append(1000 * (self.last - started))
        if answer.is_error:
            raise RuntimeError(f"{name}: {answer.status_code} {answer.text}")
        return answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--images", type=int, default=1000, help="at most so many tasks")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--think-seconds", type=float, default=2.0, help="between two masks")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        store = open_store(folder)
        desk, run = waiting_desk(store, CONFIG.format(images=options.images))
        accounts = Accounts(tasks_url(store, desk.config), clock=time.time)
        tokens = {
            f"annotator {number}": accounts.add(f"annotator {number}", Role.ANNOTATOR)
            for number in range(options.annotators)
        }
        with server(folder, options.port) as url, ThreadPoolExecutor(len(tokens)) as pool:
            clock, deadline = Clock(), time.monotonic() + 60 * options.minutes
            work = [
                pool.submit(annotate, url, token, clock, deadline, options.think_seconds)
                for token in tokens.values()
            ]
            saved = dict(zip(tokens, (each.result() for each in work), strict=True))
        report(clock)
        check(desk, saved)
        if not desk.tasks_left():
            run.join()  # it is sealing its round, in a folder that is about to go


def waiting_desk(store: Store, config: str) -> tuple[Desk, threading.Thread]:
    """The desk of a run, and the run: a thread that waits for people until this process ends."""
    quiet = Progress(Console(file=StringIO()))
    work = (store, parse_config(config, "benchmark"), quiet, LocalMachines())
    run = threading.Thread(target=run_rounds, args=work, daemon=True)
    run.start()
    while run.is_alive():
        with suppress(EngineError, FileNotFoundError):  # the run has not come so far
            desk = Desk(store)
            with suppress(EngineError):
                if desk.tasks_left():
                    return desk, run
            desk.close()
        time.sleep(0.5)
    raise SystemExit("the run ended before it waited for people")


@contextmanager
def server(folder: str, port: int) -> Iterator[str]:
    program = (
        "import sys; from engine.store import open_store; from web.serve import serve; "
        "serve(open_store(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]), announce=print)"
    )
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", program, folder, str(port)], cwd=root)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                httpx.get(f"{url}/api/me")
            except httpx.TransportError:
                time.sleep(0.2)
            else:
                break
        yield url
    finally:
        process.kill()
        process.wait()


def annotate(
    url: str, token: str, clock: Clock, deadline: float, think_seconds: float
) -> dict[int, list[str]]:
    """One annotator; returns the ids of the masks that were saved, by task."""
    saved: dict[int, list[str]] = {}
    with httpx.Client(base_url=url, headers=HEADER, timeout=120) as client:
        clock.call("login", client.post, "/api/login", json={"token": token})
        while time.monotonic() < deadline:
            claimed = clock.call("claim", client.post, "/api/tasks/claim")
            if claimed.status_code == 204:  # nothing is left
                break
            task = claimed.json()
            place, lease = f"/api/tasks/{task['task_id']}", {"lease": task["lease"]}
            clock.call("image", client.get, f"/api/images/{task['image_id']}")
            clock.call("embedding", client.get, f"/api/embeddings/{task['image_id']}")
            saved[task["task_id"]] = []
            for number in range(MASKS_PER_TASK):
                time.sleep(think_seconds)
                mask_id = uuid.uuid4().hex
                body = lease | {"mask": mask_of(task, number)}
                clock.call("save", client.put, f"{place}/masks/{mask_id}", json=body)
                saved[task["task_id"]].append(mask_id)
            question = {
                "image_id": task["image_id"],
                "point_coords": [[50.0, 50.0], [0.0, 0.0]],
                "point_labels": [1, -1],
            }
            clock.call("decode", client.post, "/api/decode", json=question)
            clock.call("renew", client.post, f"{place}/renew", json=lease)
            for _ in range(2):  # a submission that arrives twice counts once
                body = lease | {"seconds": 9.0}
                clock.call("submit", client.post, f"{place}/submit", json=body)
    return saved


def mask_of(task: dict[str, Any], number: int) -> dict[str, Any]:
    mask = np.zeros((task["height"], task["width"]), dtype=bool)
    mask[10 * number : 10 * number + 30, 20:90] = True
    rle = encode_rle(mask).model_dump(mode="json")
    click = {
        "kind": "point",
        "coords": [30.0, 10.0 * number + 5],
        "label": 1,
        "output": 0,
        "seconds": 1.5,
        "predicted_iou": 0.8,
        "answer": rle,
    }
    return {
        "segmentation": rle,
        "predicted_iou": 0.8,
        "stability_score": 0.9,
        "seconds": 2.0,
        "interactions": [click],
    }


def report(clock: Clock) -> None:
    total, seconds = sum(map(len, clock.milliseconds.values())), clock.last - clock.first
    print(json.dumps({"calls": total, "calls_per_second": round(total / seconds, 1)}))
    for name, values in sorted(clock.milliseconds.items()):
        median, p95 = np.percentile(values, [50, 95])
        figures = {"call": name, "number": len(values), "median": round(median), "p95": round(p95)}
        print(json.dumps(figures), flush=True)


def check(desk: Desk, saved: dict[str, dict[int, list[str]]]) -> None:
    """Every task was one annotator's, and holds exactly the masks that were saved."""
    tasks = [task_id for mine in saved.values() for task_id in mine]
    assert len(tasks) == len(set(tasks)), "two annotators held one task"
    for name, mine in saved.items():
        for task_id, mask_ids in mine.items():
            found = [(mask.mask_id, mask.annotator) for mask in desk.saved(task_id)]
            assert found == [(mask_id, name) for mask_id in mask_ids], f"task {task_id} differs"
    progress = desk.progress.of(TaskKind.ANNOTATE)
    masks = sum(len(mask_ids) for mine in saved.values() for mask_ids in mine.values())
    assert (progress.submitted, progress.masks) == (len(tasks), masks)
    print(json.dumps({"tasks": len(tasks), "masks": masks, "lost": 0, "doubled": 0}), flush=True)


if __name__ == "__main__":
    main()
