"""What a finished run shows: a table of its rounds, a figure of statistics, pictures of masks."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.errors import UnavailableImageError, UnreadableImageError
from engine.figures import figure_bytes, stats_figure
from engine.manifest import RoundManifest, load_manifest
from engine.pictures import contact_sheet, overlay, png_bytes
from engine.rounds import RoundOutcome, load_start
from engine.shards import read_records
from engine.stats import Stats
from engine.store import Store
from stages.records import ImageRecord

PICTURES_PER_ROUND = 6

Rounds = Sequence[tuple[int, RoundOutcome]]


def rounds_table(store: Store, config: EngineConfig, rounds: Rounds) -> Table:
    """Per round: what was made, at which cost, and how good the model is after it."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("round", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "images",
        "masks",
        "masks/image",
        "seconds/mask",
        "mIoU, 1 click",
    ):
        table.add_column(heading, justify="right")
    table.add_column("checkpoint", no_wrap=True)
    start = load_start(store)
    if start is not None:
        table.add_row("start", "", "", "", "", "", _score(start), _name(start.checkpoint))
    for index, outcome in rounds:
        manifest = load_manifest(store, config.round_folder(index))
        stats = manifest.stats
        table.add_row(
            str(index),
            manifest.header.stage.value,
            f"{stats.num_images:,}",
            f"{stats.num_masks:,}",
            f"{stats.mean_masks_per_image:.1f}",
            f"{stats.seconds_per_mask:.1f}",
            _score(outcome),
            _name(outcome.checkpoint) + _kept(outcome),
        )
    return table


def write_report(store: Store, config: EngineConfig, rounds: Rounds) -> list[str]:
    """Draw the run's figure and, per round, a sheet of its masks; returns their paths."""
    labelled: list[tuple[str, Stats]] = []
    paths = [f"{layout.REPORT}/statistics.png"]
    for index, _ in rounds:
        manifest = load_manifest(store, config.round_folder(index))
        labelled.append((f"{index} {manifest.header.stage}", manifest.stats))
        sheet = _sheet(store, config, manifest)
        if sheet is not None:
            path = f"{layout.REPORT}/masks-round-{index:02d}-{manifest.header.stage}.png"
            store.replace(path, sheet)
            paths.append(path)
    store.replace(paths[0], figure_bytes(stats_figure(labelled, title=config.name)))
    return paths


def _sheet(store: Store, config: EngineConfig, manifest: RoundManifest) -> bytes | None:
    """Masks over the first photographs of a round that have any."""
    spec = WorkerSpec(store.uri, "", limits=config.corpus.limits, work_size=config.work_size)
    context, corpus = WorkerContext(spec), Corpus(store)
    pictures, captions = [], []
    for record in _with_masks(store, manifest):
        try:
            image = context.read_image(corpus.row(record.image_id))
        except UnreadableImageError:  # it was there when its masks were made
            continue
        except UnavailableImageError:  # nor are the others then
            break
        pictures.append(overlay(image.pixels, [mask.segmentation for mask in record.masks]))
        captions.append(f"{record.file_name}: {len(record.masks)} masks")
        if len(pictures) == PICTURES_PER_ROUND:
            break
    return png_bytes(contact_sheet(pictures, captions)) if pictures else None


def _with_masks(store: Store, manifest: RoundManifest) -> Iterator[ImageRecord]:
    for shard in manifest.shards:
        for record in read_records(store, shard.path):
            if record.masks:
                yield record


def _score(outcome: RoundOutcome) -> str:
    return "-" if outcome.evaluation is None else f"{outcome.evaluation.miou_1_click:.3f}"


def _kept(outcome: RoundOutcome) -> str:
    """A trained checkpoint that was not promoted is said to be so."""
    if outcome.trained is None or outcome.trained == outcome.checkpoint:
        return ""
    trained, kept = outcome.trained_evaluation, outcome.evaluation
    if trained is None:
        return " (kept)"
    better = kept is not None and trained.miou_1_click > kept.miou_1_click
    but = ", less later" if better else ""  # after more clicks
    return f" (kept; trained one at {trained.miou_1_click:.3f}{but})"


def _name(path: str) -> str:
    return path.rpartition("/")[2]
