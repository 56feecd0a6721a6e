"""The hosted models in the form that ``nnsight.status()`` reads."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from interlace.protocol.hosting import Phase
from interlace_server.views import phase_of, text_of
from interlace_state.desired import Desired
from interlace_state.models import HostedModel, ModelState, Replica

_ApplicationState = Literal["RUNNING", "DEPLOYING", "UNHEALTHY", "NOT_STARTED"]
_APPLICATION_STATE: dict[ModelState, _ApplicationState] = {
    ModelState.COLD: "NOT_STARTED",
    ModelState.READY: "RUNNING",
    ModelState.DEPLOYING: "DEPLOYING",
    ModelState.FAILED: "UNHEALTHY",
}


class Deployment(BaseModel):
    """One replica, or a model that has none yet."""

    application_state: _ApplicationState
    #: COLD where no replica runs and the next job starts one; `nnsight.status()` leaves these out.
    deployment_level: Literal["HOT", "COLD"] = "HOT"
    pinned: bool = True
    #: Whether its jobs run unprotected, for tenants that the operator trusts.
    trusted: bool = False
    trust_remote_code: bool
    dtype: str
    execution_timeout_seconds: float
    model_key: str
    replica_id: str
    repo_id: str
    task: str | None
    revision: str
    #: The checkpoint's config.json, as text.
    config: str
    n_params: int | None
    size_bytes: int | None
    gpus: float = 0
    #: Why the model could not be loaded.
    failure: str | None
    #: Whether an operator lets the model's jobs wait, or gives this replica none.
    paused: bool = False
    drained: bool = False
    #: Where the model stands in its life, and a sentence on it.
    phase: Phase
    phase_text: str = ""


class Node(BaseModel):
    """One machine and the replicas on it, by model key and replica id."""

    resources: dict[str, Any] = {"gpu_details": []}
    deployments: dict[str, dict[str, dict[str, Any]]] = {}


class Cluster(BaseModel):
    nodes: dict[str, Node] = {}


class Overview(BaseModel):
    """All deployments, by ``REPLICA:ModelActor:MODEL_KEY``."""

    deployments: dict[str, Deployment] = {}
    cluster: Cluster = Cluster()


def overview(models: Iterable[HostedModel], wall_seconds: float, records: Mapping[str, Desired]) -> Overview:
    """``records``: what shall be hosted, by slug."""
    deployments: dict[str, Deployment] = {}
    nodes: dict[str, Node] = {}
    for model in models:
        key = model.card.key.canonical
        record = records.get(model.card.key.slug)
        for replica in model.replicas or (None,):
            replica_id = model.card.key.slug if replica is None else replica.id
            deployments[f"{replica_id}:ModelActor:{key}"] = _deployment(
                model, replica, replica_id, wall_seconds, record
            )
            if replica is not None:
                node = nodes.setdefault(replica.node, Node())
                node.deployments.setdefault(key, {})[replica_id] = {
                    "gpus": {},
                    "resident_bytes": replica.resident_bytes,
                    "holder": replica.holder,
                }
    return Overview(deployments=deployments, cluster=Cluster(nodes=nodes))


def _deployment(
    model: HostedModel, replica: Replica | None, replica_id: str, wall_seconds: float, record: Desired | None
) -> Deployment:
    card, phase = model.card, phase_of(model)
    # The replica of a failed model says for a moment that it still comes.
    state = model.state if replica is None or model.state is ModelState.FAILED else replica.state
    if state in (ModelState.COLD, ModelState.FAILED) and phase in (Phase.QUEUED, Phase.DOWNLOADING, Phase.LOADING):
        state = ModelState.DEPLOYING  # no replica shall run yet, but one will
    return Deployment(
        application_state=_APPLICATION_STATE[state],
        deployment_level="COLD" if state is ModelState.COLD else "HOT",
        pinned=record is None or record.model.pin or record.model.idle_seconds is None,
        gpus=0 if record is None else record.model.gpus,
        phase=phase,
        phase_text=text_of(model, phase),
        trust_remote_code=card.key.trust_remote_code,
        dtype=card.dtype,
        execution_timeout_seconds=wall_seconds,
        model_key=card.key.canonical,
        replica_id=replica_id,
        repo_id=card.key.repo_id,
        task=card.key.task,
        revision=card.key.revision,
        config=json.dumps(card.config),
        n_params=card.n_params,
        size_bytes=card.size_bytes,
        trusted=card.trusted is not None,
        failure=card.failure,
        paused=model.paused,
        drained=replica is not None and replica.drained,
    )
