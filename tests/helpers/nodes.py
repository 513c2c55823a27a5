"""A Ray of two nodes, and a study of a slow model that its workers share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from faulty_study import STUDY, ZOO

import lrsearch

IMPATIENT = '''
from lrsearch.study import storage, turns

storage.INTERVAL, storage.GRACE, turns.GRACE = 1, 6, 6
'''
SLOW = '''
import time

class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)
'''
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",  # beside other work they would wait for long
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(lrsearch.__file__).parents[1]), os.environ.get("PYTHONPATH")])),
}


def slow_study(home: Path, trials: int) -> None:
    """Write ``tiny.yaml`` and its code, by which workers count as dead after seconds."""
    code = ZOO.replace("def model", f"{SLOW}\ndef model").replace("nn.Sequential(nn.L", "Slow(nn.L")
    (home / "zoo.py").write_text(code)
    (home / "impatient.py").write_text(IMPATIENT)
    study = {**STUDY, "plugins": ["impatient"], "search": {**STUDY["search"], "trials": trials}, "deploy": {"measure": False}}
    (home / "tiny.yaml").write_text(yaml.safe_dump(study))


@contextmanager
def two_nodes() -> Iterator[Any]:
    """With room for one worker each; ``second`` is the one that may be lost. They need :data:`ENVIRONMENT`."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=size)
    made.second = made.add_node(**size)
    try:
        yield made
    finally:
        made.shutdown()
