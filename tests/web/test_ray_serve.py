"""The annotation server on real Ray Serve, some of whose replicas die."""

import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from benchmarks.annotators import Clock, annotate, check
from offices import HEADER, PEOPLE, Office, leave, open_office
from tiny_runs import MANUAL, TinyRun
from web.accounts import Role
from web.ray_serve import APPLICATION, EncoderReplica, PagesReplica, Settings

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray

IMAGES = 16
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    opened = open_office(TinyRun(tmp_path_factory.mktemp("office"), rounds, IMAGES))
    yield opened
    leave(opened)


@pytest.fixture(scope="module")
def url(office: Office, ray_cluster: "Cluster") -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    office.accounts.add("Ada", Role.ANNOTATOR)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    free: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
    settings = Settings(run=office.run.store.uri, secure_cookies=False)
    encoders = EncoderReplica.options(**free).bind(settings.run)  # type: ignore[attr-defined]
    pages = PagesReplica.options(**free).bind(settings, encoders)  # type: ignore[attr-defined]
    serve.run(pages, name=APPLICATION)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def client(office: Office, url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=HEADER, timeout=120) as client:
        body = {"token": office.accounts.add("Ada", Role.ANNOTATOR)}
        assert client.post("/api/login", json=body).status_code == 204
        yield client


def forget_embeddings(office: Office) -> None:
    shutil.rmtree(office.run.out / "embeddings", ignore_errors=True)


def batches() -> dict[int, int]:
    handle = serve.get_deployment_handle("encoder", APPLICATION)
    found: dict[int, int] = handle.batches.remote().result(timeout_s=60)
    return found


def test_what_is_asked_at_the_same_time_is_embedded_together(
    office: Office, client: httpx.Client
) -> None:
    places = [f"/api/embeddings/{image_id}" for image_id in office.run.planned(0)]
    stored = [client.get(place).content for place in places]
    assert batches() == {}  # the run had stored them
    forget_embeddings(office)
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda place: client.get(place).content, places))
    sizes = batches()
    assert sum(size * number for size, number in sizes.items()) == IMAGES
    assert max(sizes) > 1
    for one, other in zip(made, stored, strict=True):
        assert len(one) == len(other) > 0
    asked = [client.get(place).content for place in places]
    assert asked == made  # stored for all
    assert batches() == sizes


def test_an_encoder_that_is_killed_loses_no_request(office: Office, client: httpx.Client) -> None:
    forget_embeddings(office)

    def ask(image_id: int) -> int:
        return client.get(f"/api/embeddings/{image_id}").status_code

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(ask, office.run.planned(0))
        assert kill_encoders() == 1
        assert set(answers) == {200}


def kill_encoders() -> int:
    names = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{APPLICATION}#encoder#" in actor["name"]
    ]
    for actor in names:
        with suppress(ValueError):  # it has ended meanwhile
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)
    return len(names)


def test_hostile_requests_are_refused_by_every_replica(url: str, client: httpx.Client) -> None:
    def refused(method: str, path: str, status: int, **request: Any) -> None:
        for _ in range(3):  # whichever replica it meets
            with httpx.Client(base_url=url, timeout=60) as stranger:
                answer = stranger.request(method, path, **request)
            assert answer.status_code == status, f"{path}: {answer.status_code}"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]

    refused("GET", "/api/me", 401)
    refused("GET", "/api/embeddings/0", 401)
    refused("POST", "/api/tasks/claim", 401, headers=HEADER)
    refused("POST", "/api/tasks/claim", 403)
    refused("POST", "/api/login", 401, headers=HEADER, json={"token": "guess"})
    refused("POST", "/api/login", 411, headers=HEADER, content=iter([b"{}"]))
    refused("POST", "/api/login", 413, headers=HEADER, content=b" " * (9 * 2**20))
    assert client.get("/api/embeddings/99999").status_code == 404


def test_annotators_through_serve_lose_nothing_and_double_nothing(office: Office, url: str) -> None:
    forget_embeddings(office)
    names = [f"annotator {number}" for number in range(4)]
    tokens = [office.accounts.add(name, Role.ANNOTATOR) for name in names]
    deadline = time.monotonic() + 120
    with ThreadPoolExecutor(len(names)) as pool:
        work = [pool.submit(annotate, url, token, Clock(), deadline, 0.0) for token in tokens]
        saved = dict(zip(names, (each.result() for each in work), strict=True))
    assert sum(map(len, saved.values())) == IMAGES
    check(office.desk, saved)
    office.finish()
    assert all(len(record.masks) == 4 for record in office.run.records(0))
    office.run.assert_whole()


def test_serve_accepts_the_file_that_deploys_it() -> None:
    content = yaml.safe_load((PROJECT / "serve.yaml").read_text())
    (app,) = ServeDeploySchema.model_validate(content).applications
    assert app.import_path == "web.ray_serve:application"
    assert app.name == APPLICATION
    Settings.model_validate(app.args)
    named = {deployment.name for deployment in app.deployments}
    assert named == {"encoder", "pages"}
