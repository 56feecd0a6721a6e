"""What Ray is told of a model: GPUs and memory of each replica, and one name for one configuration."""

from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig
from interlace_state.settings.services import RayConfig
from interlace_workers.order import Load
from interlace_workers.placement.place import Placement
from interlace_workers.runtimes import ray_serve

LOAD = Load(path="/m", task="text-generation", dtype="float32", trust_remote_code=False, threads=1)


def placement(generation: int = 0, **settings: object) -> Placement:
    model = ModelConfig.model_validate({"source": "a/b", **settings})
    return Placement(model, ModelKey(repo_id="a/b"), LOAD, need_bytes=1 << 30, generation=generation)


def test_gpus_are_reserved_and_on_a_cluster_memory_too() -> None:
    assert "num_gpus" not in ray_serve.resources(Config(), placement())
    own = ray_serve.resources(Config(), placement(gpus=2))
    assert (own["num_gpus"], "memory" in own) == (2, False)
    cluster = Config(ray=RayConfig(address="auto"))
    assert ray_serve.resources(cluster, placement())["memory"] == 1 << 30


def test_a_replica_that_no_machine_has_gpus_for_says_how_many_there_are() -> None:
    of = ray_serve.short_of_gpus
    assert of(1, []).startswith("A replica waits for 1 GPU: the cluster has 0. It comes once a machine has as many")
    assert of(4, [(2, 2), (2, 0)]).startswith("A replica waits for 4 GPUs: the cluster has 4, at most 2 of them on one")
    assert of(2, [(2, 1)]) == "A replica waits for 2 GPUs: the cluster has 2, of which 1 is free."
    assert (
        of(2, [(2, 1), (4, 0)]) == "A replica waits for 2 GPUs: the cluster has 6, of which 1 is free on one machine."
    )


def test_what_a_former_placer_has_started_is_known_by_its_name() -> None:
    name = ray_serve.deployment_name(Config(), placement())
    assert name == ray_serve.deployment_name(Config(), placement())
    others = [placement(generation=1), placement(dtype="bfloat16")]
    assert name not in [ray_serve.deployment_name(Config(), other) for other in others]
    assert name != ray_serve.deployment_name(Config(isolation="none"), placement())
