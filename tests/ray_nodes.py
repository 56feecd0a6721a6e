"""``python ray_nodes.py``: a Ray of two nodes, below ``$RAY_TMPDIR``, until standard input ends.

Prints a JSON line: Ray's address, and the process id of the raylet of the node that is not the head.
"""

import json
import sys

from ray.cluster_utils import Cluster

_NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


def main() -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={**_NODE, "include_dashboard": False, "dashboard_host": "127.0.0.1"}
    )
    try:
        second = cluster.add_node(**_NODE)
        (raylet,) = second.all_processes["raylet"]
        print(json.dumps({"address": cluster.address, "raylet": raylet.process.pid}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
