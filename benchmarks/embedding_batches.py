"""Embeddings a second, one image at a time and several together, as the encoder replicas make them.

python -m benchmarks.embedding_batches --checkpoint sa-tiny --images 16 --batch 1 4 8
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch

from model.checkpoint import load_checkpoint
from stages.predictor import embed_batch


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sam = load_checkpoint(options.checkpoint).sam
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(options.images)]
    embed_batch(sam, images[:1])
    for size in options.batch:
        wall, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(images), size):
            embed_batch(sam, images[first : first + size])
        figures = {
            "batch": size,
            "images_per_second": round(len(images) / (time.perf_counter() - wall), 2),
            "images_per_cpu_second": round(len(images) / (time.process_time() - cpu), 2),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
