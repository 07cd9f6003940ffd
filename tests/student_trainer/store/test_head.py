"""The head of a store: written by whoever comes, whole for whoever reads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from student_trainer.store.folder import StoreFolder
from student_trainer.store.head import load_head, save_head
from student_trainer.wire import WireHead

NUM_WRITERS = 4


def test_workers_may_write_the_head_at_the_same_time(tmp_path):
    weight_VD = np.arange(2**20, dtype="<f4").reshape(-1, 64)
    head = WireHead(
        digest="d" * 64,
        dtype="f32",
        weight_VD=weight_VD,
        bias_V=None,
        logit_scale=1.0,
        logit_soft_cap=0.0,
    )
    start = threading.Barrier(NUM_WRITERS)

    def work(_: int) -> None:
        with StoreFolder(tmp_path) as folder:
            start.wait(timeout=60)
            save_head(folder, head)

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        list(pool.map(work, range(NUM_WRITERS)))
    with StoreFolder(tmp_path) as folder:
        np.testing.assert_array_equal(load_head(folder, head.digest).weight_VD, weight_VD)
    assert list(tmp_path.glob(".*.partial")) == []
