"""Images that cannot be scanned, and what becomes of the others."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import engine.corpus
from engine.config import EngineConfig
from engine.corpus import CORPUS, CorpusRow, scan_part
from engine.errors import EngineError
from engine.images import ImageLimits, Pixels, read_pixels
from engine.machines import LocalMachines
from engine.progress import Progress
from engine.run import open_run
from runs import SmallRun
from stages.records import ImageStatus
from tiny_runs import AUTOMATIC, TinyRun


def scanned(run: TinyRun) -> list[CorpusRow]:
    opened = open_run(run.store, run.config, Progress(Console(file=StringIO())), LocalMachines())
    return opened.corpus.rows(range(len(opened.corpus)))


def exhausting(monkeypatch: pytest.MonkeyPatch, *images: Path) -> None:
    """Have these images need more memory than there is."""
    large = [image.read_bytes() for image in images]

    def decode(data: bytes, limits: ImageLimits) -> Pixels:
        if data in large:
            raise MemoryError
        return read_pixels(data, limits)

    monkeypatch.setattr(engine.corpus, "read_pixels", decode)


def tiny(tmp_path: Path, images_per_part: int) -> TinyRun:
    changes = {"corpus": {"images_per_part": images_per_part}}
    return TinyRun(tmp_path, [AUTOMATIC], num_images=8, changes=changes)


@pytest.mark.parametrize("images_per_part", [3, 8])
def test_images_that_exhaust_memory_cost_their_own_rows_only(
    tmp_path: Path, images_per_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(tmp_path, images_per_part)
    exhausting(monkeypatch, run.image(1), run.image(4))
    rows = scanned(run)
    assert [row.image_id for row in rows] == list(range(8))
    assert [row.uri for row in rows] == [str(run.image(number)) for number in range(8)]
    for row in rows:
        if row.image_id in (1, 4):
            assert row.status is ImageStatus.GIVEN_UP
            assert row.reason.startswith("every attempt to scan it failed: MemoryError: ")
            assert (row.width, row.sha256, row.split) == (0, "", "train")
        else:
            assert (row.status, row.reason, row.width) == (ImageStatus.OK, "", 64)


def test_machines_on_which_nothing_can_be_scanned_end_the_scan_early_and_name_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(tmp_path, images_per_part=4)
    exhausting(monkeypatch, *map(run.image, range(8)))
    begun: list[int] = []

    def scan(store_uri: str, config: engine.corpus.CorpusConfig, number: int) -> int:
        begun.append(number)
        return scan_part(store_uri, config, number)

    monkeypatch.setattr(engine.corpus, "scan_part", scan)
    cause = r"4 of 4 files cannot be scanned; the last: \S*003\.png: .*MemoryError"
    with pytest.raises(EngineError, match=cause):
        scanned(run)
    assert begun == [0, 0]
    assert not run.store.exists(CORPUS)

    monkeypatch.undo()
    assert all(row.status is ImageStatus.OK for row in scanned(run))


def test_a_run_says_which_annotations_it_refused(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=2)
    path = Path(run.source.annotations)
    content = json.loads(path.read_text())
    content["annotations"] += [{"image_id": 9}, {"image_id": 0, "segmentation": "rubbish"}]
    path.write_text(json.dumps(content))
    shutil.rmtree(run.store.root)
    automatic = {"stage": "fully_automatic", "source": "photos"}
    config = EngineConfig.model_validate(
        {
            "checkpoint": "sa-tiny",
            "sources": [run.source],
            "rounds": [automatic],
            "execution": {"executor": "local"},
        }
    )
    said = StringIO()
    open_run(run.store, config, Progress(Console(file=said, width=200)), LocalMachines())
    assert "annotations of photos: 2 kept, 1 malformed, 1 unknown_image" in said.getvalue()
