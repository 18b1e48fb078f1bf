"""Every promoted checkpoint has its decoder, and a damaged one is noticed."""

import shutil
from pathlib import Path

import onnxruntime
import pytest

from engine import cli, rounds
from engine.context import load_run_checkpoint
from engine.decoders import decoder_faults, ensure_decoder, load_decoder
from engine.errors import CorruptFileError, EngineError
from engine.rounds import load_outcome
from engine.store import LocalStore
from tiny_runs import MANUAL, TinyRun


@pytest.fixture
def store(undisturbed: TinyRun, tmp_path: Path) -> LocalStore:
    """A copy of a finished run, whose first round promoted a checkpoint."""
    shutil.copytree(undisturbed.out, tmp_path / "run")
    return LocalStore(tmp_path / "run")


PROMOTED = "checkpoints/round-00"


def test_a_promoted_checkpoint_has_its_decoder(store: LocalStore) -> None:
    decoder = load_decoder(store, PROMOTED)
    checkpoint = load_run_checkpoint(store, PROMOTED)
    config = checkpoint.config
    assert decoder.checkpoint == checkpoint.label
    assert decoder.embedding_shape == (config.embed_dim, *[config.embedding_size] * 2)
    assert (decoder.low_res_size, decoder.image_size) == (config.low_res_size, config.image_size)
    onnxruntime.InferenceSession(decoder.content, providers=["CPUExecutionProvider"])
    assert load_decoder(store, checkpoint.label) == decoder


def test_a_run_killed_between_promotion_and_export_exports_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = TinyRun(tmp_path, [MANUAL], 2)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "ensure_decoder", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run()
    outcome = load_outcome(run.store, run.config.round_folder(0))
    assert outcome is not None
    assert outcome.promoted == PROMOTED
    with pytest.raises(EngineError, match=r"has no decoders/round-00.onnx: start `sa-engine run`"):
        load_decoder(run.store, PROMOTED)
    assert cli.verify(str(run.out)) == 1
    run.run()
    assert load_decoder(run.store, PROMOTED).checkpoint.startswith("round-00@")
    run.assert_whole()


def test_a_damaged_decoder_and_one_of_other_weights_are_faults(store: LocalStore) -> None:
    assert list(decoder_faults(store, [PROMOTED])) == []
    path = store.root / "decoders" / "round-00.onnx"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"ONNX"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="not a whole decoder"):
            load_decoder(store, PROMOTED)
        assert len(list(decoder_faults(store, [PROMOTED]))) == 1
    path.unlink()
    ensure_decoder(store, "checkpoints/tiny")
    (store.root / "decoders" / "tiny.onnx").rename(path)
    (fault,) = decoder_faults(store, [PROMOTED])
    assert "made of tiny@" in fault
    assert "the checkpoint is round-00@" in fault
