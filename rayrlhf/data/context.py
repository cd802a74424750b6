"""How Ray Data runs here: rows keep their order, shuffles fit the cluster, logs stay out of the console."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import Dataset

MIN_PARTITIONS = 8
FOOTER_READERS = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"  # processes that read Parquet footers, for each dataset
FOOTERS_A_CALL = "RAY_DATA_PARQUET_FOOTER_BATCH_SIZE"  # files that one of them is given at a time


def settle(ds: Dataset | None = None) -> None:
    """Set Ray Data's options on this process, and on `ds`, which may have been made before.

    Process-wide, because Ray Train builds its workers' execution options from the driver's.  Ray's own
    default of 200 partitions a shuffle takes 10 s on 2 cores for some MB; two a CPU keep every core busy.  And of 32
    processes for the footers of Parquet files, started for each pass over a dataset, some 3 s there; here one for every
    16 CPUs, given as many files at a time as it has threads.
    """
    import ray
    from ray.data import DataContext

    cpus = int(ray.cluster_resources().get("CPU", 1))
    os.environ.setdefault(FOOTER_READERS, str(min(32, 1 + cpus // 16)))
    os.environ.setdefault(FOOTERS_A_CALL, "128")
    partitions = max(MIN_PARTITIONS, 2 * cpus)
    contexts = [DataContext.get_current()] + ([] if ds is None else [ds.context])
    for context in contexts:
        context.execution_options.preserve_order = True
        context.default_hash_shuffle_parallelism = partitions
        context.enable_progress_bars = False
        context.raise_original_map_exception = True  # else a DataError raised in a task loses its type
    # what it logs as an error it also raises, and then the user sees one message instead of two tracebacks
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
