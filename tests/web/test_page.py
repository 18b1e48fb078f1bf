"""The built page as it is served: from memory, and nothing beside it."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from web.page import page_routes


@pytest.fixture
def browser(tmp_path: Path) -> TestClient:
    (tmp_path / "static" / "assets").mkdir(parents=True)
    (tmp_path / "static" / "index.html").write_text("<title>page</title>")
    (tmp_path / "static" / "assets" / "app-1a2b.js").write_text("let a;")
    (tmp_path / "secret").write_text("not for you")
    app = FastAPI()
    app.include_router(page_routes(tmp_path / "static"))
    return TestClient(app)


def test_the_page_and_its_parts_are_served_and_kept_by_browsers(browser: TestClient) -> None:
    index = browser.get("/")
    assert (index.text, index.headers["Cache-Control"]) == ("<title>page</title>", "no-cache")
    assert index.headers["Content-Type"].startswith("text/html")
    script = browser.get("/assets/app-1a2b.js")
    assert (script.text, "immutable" in script.headers["Cache-Control"]) == ("let a;", True)
    assert "javascript" in script.headers["Content-Type"]
    again = browser.get("/", headers={"If-None-Match": f"W/{index.headers['ETag']}"})
    assert (again.status_code, again.content) == (304, b"")


def test_no_path_of_a_request_reaches_the_disk(browser: TestClient, tmp_path: Path) -> None:
    for path in ("/../secret", "/..%2fsecret", "/assets/..%2f..%2fsecret", "/%2fetc/passwd"):
        assert browser.get(path).status_code == 404, path
    assert browser.get(f"/{tmp_path}/secret").status_code == 404
    (tmp_path / "static" / "index.html").unlink()
    assert browser.get("/").status_code == 200  # it was read before


def test_without_a_built_page_there_is_nothing(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(page_routes(tmp_path))
    assert TestClient(app).get("/").status_code == 404
