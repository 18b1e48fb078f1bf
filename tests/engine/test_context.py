import tempfile
from pathlib import Path

import pytest
import torch
from pyarrow import fs

import engine.reading
from engine.context import load_run_checkpoint
from engine.errors import ConfigError, UnavailableImageError, UnreadableImageError
from engine.images import ImageLimits, WorkSize
from engine.layout import embedding_path
from engine.store import ObjectStore
from fakes import save_tiny_sam
from model.checkpoint import encoder_sha256
from model.detector import DetectorConfig, ObjectDetector, save_detector
from runs import SmallRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return SmallRun(tmp_path_factory.mktemp("context"), num_images=3)


def test_an_image_is_read_at_its_work_size(run: SmallRun) -> None:
    row = run.rows[0]
    assert run.context().read_image(row).size_hw == (row.height, row.width) == (64, 96)
    small = run.context(work_size=WorkSize(max_short_side=32)).read_image(row)
    assert small.size_hw == (32, 48)
    assert small.image_id == row.image_id


def test_an_image_that_is_not_what_the_corpus_recorded_is_unreadable(run: SmallRun) -> None:
    changed = run.rows[0].model_copy(update={"sha256": "00" * 32})
    gone = run.rows[0].model_copy(update={"uri": str(run.photos / "none.png")})
    with pytest.raises(UnreadableImageError, match="has changed since the corpus was recorded"):
        run.context().read_image(changed)
    with pytest.raises(UnreadableImageError, match="no such file"):
        run.context().read_image(gone)
    with pytest.raises(UnreadableImageError, match="more than the limit") as refused:
        run.context(limits=ImageLimits(max_pixels=10)).read_image(run.rows[0])
    assert refused.value.status == "too_large"


def test_an_image_whose_folder_is_away_is_unavailable(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=1)
    run.photos.rename(tmp_path / "away")
    with pytest.raises(UnavailableImageError, match=r"0\.png cannot be read: its folder is gone"):
        run.context().read_image(run.rows[0])


def test_a_read_that_fails_once_is_tried_again(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_uri, attempts = engine.reading.read_uri, []

    def flaky(uri: str) -> bytes:
        attempts.append(uri)
        if len(attempts) <= len(engine.reading.READ_PAUSES_SECONDS):
            raise OSError("connection reset")
        return read_uri(uri)

    monkeypatch.setattr(engine.reading, "read_uri", flaky)
    monkeypatch.setattr(engine.reading.time, "sleep", lambda seconds: None)
    assert run.context().read_image(run.rows[0]).size_hw == (64, 96)
    assert len(attempts) == 1 + len(engine.reading.READ_PAUSES_SECONDS)


def test_an_embedding_is_the_same_made_stored_or_read_back(run: SmallRun) -> None:
    row = run.rows[1]
    made = run.context().embedding(row, run.context().read_image(row))
    keeping = run.context(keep_embeddings=True)
    path = embedding_path(encoder_sha256(keeping.checkpoint.sam), row.sha256)
    assert not run.store.exists(path)
    stored = keeping.embedding(row, keeping.read_image(row))
    assert run.store.exists(path)
    read = keeping.embedding(row, keeping.read_image(row))
    assert torch.equal(made, stored)
    assert torch.equal(made, read)
    assert made.shape == (1, 32, 8, 8)
    assert made.dtype == torch.float32


def test_an_embedding_that_is_stored_is_not_read_to_be_kept(run: SmallRun) -> None:
    row = run.rows[0]
    keeping = run.context(keep_embeddings=True)
    path = embedding_path(encoder_sha256(keeping.checkpoint.sam), row.sha256)
    keeping.keep_embedding(row)
    stored = run.store.read(path)
    run.store.replace(path, b"whoever read this would fail")
    keeping.keep_embedding(row)
    run.store.replace(path, stored)
    assert torch.equal(keeping.embedding(row), run.context().embedding(row))


def test_embeddings_of_another_encoder_are_kept_apart(run: SmallRun) -> None:
    save_tiny_sam(str(run.store.root / "checkpoints/other"), seed=1)
    row = run.rows[1]
    first, other = run.context(keep_embeddings=True), run.context(keep_embeddings=True)
    other = type(other)(type(other.spec)(run.store.uri, "checkpoints/other", keep_embeddings=True))
    image = first.read_image(row)
    assert not torch.equal(first.embedding(row, image), other.embedding(row, image))
    assert not torch.equal(first.embedding(row, image), other.embedding(row, image))


def test_a_checkpoint_is_found_in_the_run_and_anywhere_else(run: SmallRun, tmp_path: Path) -> None:
    within = load_run_checkpoint(run.store, run.checkpoint)
    assert within.name == "tiny"
    outside = load_run_checkpoint(run.store, save_tiny_sam(str(tmp_path / "mine")))
    assert outside.name == "mine"
    assert outside.sha256 == within.sha256


def test_models_from_an_object_store_are_in_memory_and_leave_no_files(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_detector(ObjectDetector(DetectorConfig(embed_dim=32, hidden_dim=8)), tmp_path / "detector")
    bucket = ObjectStore(fs.LocalFileSystem(), str(tmp_path / "bucket"), uri="test://bucket")
    bucket.publish_folder(run.checkpoint, run.store.root / run.checkpoint)
    bucket.publish_folder("detectors/one", tmp_path / "detector")
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    context = run.context(detector="detectors/one")
    context.store = bucket
    assert context.checkpoint.label == run.context().checkpoint.label
    assert context.detector.config.hidden_dim == 8
    assert list(copies.iterdir()) == []
    assert torch.equal(context.embedding(run.rows[0]), run.context().embedding(run.rows[0]))


def test_a_checkpoint_that_does_not_exist_is_a_config_error(run: SmallRun) -> None:
    with pytest.raises(ConfigError, match="no checkpoint at checkpoints/none"):
        load_run_checkpoint(run.store, "checkpoints/none")


def test_pinning_sets_the_threads_of_the_process(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    before = torch.get_num_threads()
    try:
        run.context(threads=2).pin_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
