import errno
from collections.abc import Sequence
from pathlib import Path
from weakref import ref

import numpy as np
import pytest

import engine.manifest
from engine import layout
from engine.errors import ConfigError, CorruptFileError, EngineError
from engine.manifest import (
    PlanHeader,
    RoundPlan,
    ShardManifest,
    broken_files,
    freeze_plan,
    load_manifest,
    load_plan,
    published_shards,
    seal,
)
from engine.shards import ShardFooter, ShardHeader, publish_shard, read_footer
from engine.stats import Stats
from engine.store import LocalStore, Store
from records import image_record
from stages.records import ImageRecord, StageName

FOLDER = "rounds/03-fully_automatic"
SHARDS = layout.shards_folder(FOLDER)
HEADER = PlanHeader(
    round=3,
    stage=StageName.FULLY_AUTOMATIC,
    config_sha256="cd" * 32,
    checkpoint="tiny@0123456789ab",
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def make_plan(num_images: int = 10, images_per_shard: int = 4) -> RoundPlan:
    return RoundPlan(HEADER, np.arange(num_images, dtype=np.int64) * 7, images_per_shard)


def records_of(image_ids: Sequence[int]) -> list[ImageRecord]:
    return [image_record(image_id, num_masks=image_id % 3) for image_id in image_ids]


def publish(store: LocalStore, plan: RoundPlan, shard: int, **header: object) -> None:
    made_with = ShardHeader(shard=shard, **HEADER.model_dump()).model_copy(update=header)
    path = layout.shard_path(SHARDS, shard)
    assert publish_shard(store, path, made_with, records_of(plan.shard(shard).tolist()))


@pytest.fixture
def made(store: LocalStore) -> RoundPlan:
    """A plan all of whose shards exist."""
    plan = freeze_plan(store, FOLDER, make_plan())
    for shard in range(plan.num_shards):
        publish(store, plan, shard)
    return plan


def test_a_plan_deals_all_images_out_in_order() -> None:
    plan = make_plan(num_images=10, images_per_shard=4)
    shards = [plan.shard(i).tolist() for i in range(plan.num_shards)]
    assert [len(shard) for shard in shards] == [4, 4, 2]
    assert [i for shard in shards for i in shard] == plan.image_ids.tolist()


def test_a_frozen_plan_is_loaded_as_it_was(store: LocalStore) -> None:
    plan = freeze_plan(store, FOLDER, make_plan())
    for loaded in (plan, load_plan(store, FOLDER), freeze_plan(store, FOLDER, make_plan())):
        assert loaded.header == HEADER
        assert loaded.image_ids.tolist() == make_plan().image_ids.tolist()
        assert loaded.images_per_shard == 4


def test_a_round_goes_on_with_the_images_that_were_planned_first(store: LocalStore) -> None:
    freeze_plan(store, FOLDER, make_plan(num_images=10))
    assert len(freeze_plan(store, FOLDER, make_plan(num_images=99)).image_ids) == 10


def test_a_plan_that_does_not_say_which_edge_detector_goes_on_with_any(store: LocalStore) -> None:
    freeze_plan(store, FOLDER, make_plan())
    now = HEADER.model_copy(update={"edge_detector": "ef" * 32})
    frozen = freeze_plan(store, FOLDER, RoundPlan(now, make_plan().image_ids, 4))
    assert frozen.header == HEADER


def test_a_round_planned_with_another_checkpoint_is_refused_with_both(store: LocalStore) -> None:
    freeze_plan(store, FOLDER, make_plan())
    changed = HEADER.model_copy(update={"checkpoint": "other@ba9876543210", "config_sha256": "ef"})
    with pytest.raises(ConfigError) as refusal:
        freeze_plan(store, FOLDER, RoundPlan(changed, make_plan().image_ids, 4))
    message = str(refusal.value)
    assert f"cannot resume {FOLDER}" in message
    assert "checkpoint tiny@0123456789ab, is now other@ba9876543210" in message
    assert "config_sha256 cdcd" in message
    assert "stage" not in message
    assert "\n" not in message


def test_a_damaged_plan_is_corrupt(store: LocalStore) -> None:
    freeze_plan(store, FOLDER, make_plan())
    file = store.root / layout.plan_path(FOLDER)
    whole = file.read_bytes()
    for length in (0, 3, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"plan\.parquet is not a plan"):
            load_plan(store, FOLDER)


def test_shards_that_exist_are_found_by_one_listing(store: LocalStore) -> None:
    plan = make_plan()
    publish(store, plan, 0)
    publish(store, plan, 2)
    store.publish(layout.shard_path(SHARDS, 1, part=0), b"a part is no shard")
    store.publish(f"{SHARDS}/shard-backup.parquet", b"nor is this")
    assert published_shards(store, SHARDS) == {0, 2}
    assert published_shards(store, "rounds/99-nothing/shards") == set()


def test_every_shard_path_is_read_back_as_its_number() -> None:
    for number in (0, 42, 999_999, 1_234_567):
        assert layout.shard_of(layout.shard_path(SHARDS, number)) == number
        assert layout.shard_of(layout.shard_path(SHARDS, number, part=3)) is None


def test_sealing_records_every_shard_and_adds_up_their_statistics(
    store: LocalStore, made: RoundPlan
) -> None:
    manifest = seal(store, FOLDER, made)
    assert manifest == load_manifest(store, FOLDER) == seal(store, FOLDER, made)
    assert manifest.header == HEADER
    assert [shard.path for shard in manifest.shards] == [
        layout.shard_path(SHARDS, i) for i in range(3)
    ]
    assert [shard.num_images for shard in manifest.shards] == [4, 4, 2]
    assert all(shard.size == len(store.read(shard.path)) for shard in manifest.shards)
    records = records_of(made.image_ids.tolist())
    assert manifest.stats == Stats.total(map(Stats.of, records))
    assert sum(shard.num_masks for shard in manifest.shards) == manifest.stats.num_masks


def test_sealing_holds_the_statistics_of_a_few_shards_at_a_time(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = freeze_plan(store, FOLDER, make_plan(num_images=30, images_per_shard=1))
    for shard in range(plan.num_shards):
        publish(store, plan, shard)
    describe = engine.manifest._describe
    described: list[ref[Stats]] = []
    most_alive = 0

    def counted(store: Store, path: str) -> tuple[ShardManifest, Stats]:
        nonlocal most_alive
        shard, stats = describe(store, path)
        described.append(ref(stats))
        most_alive = max(most_alive, sum(one() is not None for one in described))
        return shard, stats

    monkeypatch.setattr(engine.manifest, "_describe", counted)
    monkeypatch.setattr(engine.manifest, "SHARDS_AT_ONCE", 4)
    manifest = seal(store, FOLDER, plan)
    assert manifest.stats == Stats.total(map(Stats.of, records_of(plan.image_ids.tolist())))
    assert len(manifest.shards) == len(described) == 30
    assert most_alive <= 4 + 1  # and the last that was added up


def test_a_round_with_missing_shards_cannot_be_sealed(store: LocalStore) -> None:
    plan = freeze_plan(store, FOLDER, make_plan())
    publish(store, plan, 1)
    with pytest.raises(EngineError, match=r"cannot seal .*: shards \[0, 2\] are missing"):
        seal(store, FOLDER, plan)
    assert not store.exists(layout.manifest_path(FOLDER))


def test_a_damaged_shard_cannot_be_sealed(store: LocalStore, made: RoundPlan) -> None:
    cut(store, 1)
    with pytest.raises(CorruptFileError, match=r"shard-000001.*; delete it and run the same"):
        seal(store, FOLDER, made)
    assert not store.exists(layout.manifest_path(FOLDER))


def test_a_manifest_that_is_no_json_is_corrupt(store: LocalStore) -> None:
    store.publish(layout.manifest_path(FOLDER), b'{"header": ')
    with pytest.raises(CorruptFileError, match=r"manifest\.json is not a manifest"):
        load_manifest(store, FOLDER)


def shard_file(store: LocalStore, shard: int) -> Path:
    return store.root / layout.shard_path(SHARDS, shard)


def cut(store: LocalStore, shard: int) -> None:
    file = shard_file(store, shard)
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("sealed", [False, True])
def test_nothing_is_broken_in_a_good_round(
    store: LocalStore, made: RoundPlan, sealed: bool
) -> None:
    if sealed:
        seal(store, FOLDER, made)
    assert list(broken_files(store, FOLDER)) == []


def test_a_round_under_way_or_not_begun_is_not_broken(store: LocalStore) -> None:
    assert list(broken_files(store, FOLDER)) == []
    plan = freeze_plan(store, FOLDER, make_plan())
    publish(store, plan, 1)
    assert list(broken_files(store, FOLDER)) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_a_cut_shard_is_found(store: LocalStore, made: RoundPlan, sealed: bool) -> None:
    if sealed:
        seal(store, FOLDER, made)
    cut(store, 1)
    (line,) = broken_files(store, FOLDER)
    assert "shard-000001.parquet is damaged" in line
    assert "\n" not in line


def test_a_shard_that_cannot_be_read_hides_no_other_fault(
    store: LocalStore, made: RoundPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store, path: str) -> ShardFooter:
        if path.endswith("0.parquet"):
            raise OSError(errno.EIO, "Input/output error")
        if path.endswith("1.parquet"):
            raise EngineError(f"{path} has format 9, this program reads up to 2")
        return read_footer(store, path)

    cut(store, 2)
    monkeypatch.setattr(engine.manifest, "read_footer", refuse)
    first, second, third = broken_files(store, FOLDER)
    assert first == f"{layout.shard_path(SHARDS, 0)}: [Errno 5] Input/output error"
    assert "has format 9" in second
    assert "shard-000002.parquet is damaged" in third


def test_swapped_shards_are_found(store: LocalStore, made: RoundPlan) -> None:
    first, second = shard_file(store, 0), shard_file(store, 1)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    lines = list(broken_files(store, FOLDER))
    assert sum("images are not those of the plan" in line for line in lines) == 2
    assert any("shard-000000.parquet: made with shard 1, planned 0" in line for line in lines)


@pytest.mark.parametrize("change", [{"checkpoint": "other@1"}, {"round": 2}])
def test_a_shard_that_something_else_made_is_found(
    store: LocalStore, change: dict[str, object]
) -> None:
    plan = freeze_plan(store, FOLDER, make_plan())
    publish(store, plan, 1, **change)
    (line,) = broken_files(store, FOLDER)
    (name,) = change
    assert f"shard-000001.parquet: made with {name} {change[name]}, planned" in line


def test_a_shard_of_other_images_is_found(store: LocalStore) -> None:
    plan = freeze_plan(store, FOLDER, make_plan())
    header = ShardHeader(shard=1, **HEADER.model_dump())
    publish_shard(store, layout.shard_path(SHARDS, 1), header, records_of([28, 35, 42]))
    (line,) = broken_files(store, FOLDER)
    assert "images are not those of the plan" in line
    assert plan.shard(1).tolist() == [28, 35, 42, 49]


def test_a_shard_rewritten_after_sealing_is_found(store: LocalStore, made: RoundPlan) -> None:
    seal(store, FOLDER, made)
    shard_file(store, 2).unlink()
    records = [
        record.model_copy(update={"worker_seconds": 9.0})
        for record in records_of(made.shard(2).tolist())
    ]
    header = ShardHeader(shard=2, **HEADER.model_dump())
    publish_shard(store, layout.shard_path(SHARDS, 2), header, records)
    (line,) = broken_files(store, FOLDER)
    assert "shard-000002.parquet: its bytes are not those that were sealed" in line


def test_a_shard_missing_from_a_sealed_round_is_found(store: LocalStore, made: RoundPlan) -> None:
    seal(store, FOLDER, made)
    shard_file(store, 0).unlink()
    (line,) = broken_files(store, FOLDER)
    assert "shard-000000.parquet: missing from a sealed round" in line


def test_a_shard_that_nobody_planned_is_found(store: LocalStore, made: RoundPlan) -> None:
    store.publish(layout.shard_path(SHARDS, 17), shard_file(store, 0).read_bytes())
    (line,) = broken_files(store, FOLDER)
    assert "shard-000017.parquet: not in the plan" in line


@pytest.mark.parametrize("path", [layout.plan_path(FOLDER), layout.manifest_path(FOLDER)])
def test_a_damaged_plan_or_manifest_is_found(store: LocalStore, made: RoundPlan, path: str) -> None:
    seal(store, FOLDER, made)
    (store.root / path).write_bytes(b"nonsense")
    (line,) = broken_files(store, FOLDER)
    assert line.startswith(path)
