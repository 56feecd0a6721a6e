"""How many replicas Ray Serve runs: as many as the placement loop says in Redis, of which Ray knows nothing.

An actor reads it; the policy that Serve asks, in its controller, hears from the actor without ever waiting.
Serve writes a policy's arguments to its log, so that Redis' address, which has a password in it, is the actor's alone.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

import ray
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from interlace_state import log
from interlace_state.config import Config
from interlace_state.store import State, open_state

_NAME, _NAMESPACE = "interlace-scaler", "interlace"
_PAUSE = 1.0  # seconds until an actor that was not there is looked for again
_MOST = 10_000  # replicas: it is for the placement loop to say how many


class Scaler:
    """The actor: how many replicas of each model shall run."""

    async def __init__(self, config: str) -> None:  # type: ignore[misc]
        self._config = Config.model_validate_json(config)
        self._state: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._opened = asyncio.get_running_loop().create_task(self._open(), name="scaler")

    async def _open(self) -> None:
        log.configure(model="*", replica=_NAME)
        async with open_state(self._config) as state:
            self._state.set_result(state)
            await asyncio.Event().wait()

    async def wanted(self, slug: str) -> int | None:
        """None while that is not known. Raises RedisError, and what kept Redis from being opened."""
        if self._opened.done():
            self._opened.result()
        if not self._state.done():
            return None
        return await self._state.result().models.wanted(slug) or 0  # none of one that is hosted no longer


class Wanted:
    """The policy of one model. While the actor is not there, what is stays."""

    def __init__(self, prefix: str, slug: str) -> None:
        self._name = f"{_NAME} {prefix}"
        self._slug = slug
        self._wanted: int | None = None
        self._scaler: Any = None
        self._answer: Future[int | None] | None = None
        self._not_before = 0.0

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        self._ask()
        return context.target_num_replicas if self._wanted is None else self._wanted, {}

    def _ask(self) -> None:
        if self._answer is not None and not self._answer.done():
            return
        try:
            if self._answer is not None:
                self._wanted = self._answer.result()
            if self._scaler is None:
                if time.monotonic() < self._not_before:
                    return
                self._scaler = ray.get_actor(self._name, namespace=_NAMESPACE)
            self._answer = self._scaler.wanted.remote(self._slug).future()
        except (ValueError, ray.exceptions.RayError):  # it is not there, or no longer
            self._scaler = self._answer = None
            self._not_before = time.monotonic() + _PAUSE


def start(config: Config) -> Any:
    """Start the actor and return its handle, without which it ends. Blocks until Ray knows of it."""
    options = {"name": f"{_NAME} {config.redis.prefix}", "namespace": _NAMESPACE, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Scaler).options(**options, get_if_exists=True).remote(config.model_dump_json())


def autoscaling(prefix: str, slug: str, first: int) -> AutoscalingConfig:
    """What Serve is told: do at once what the policy says, which has waited for all that there is to wait for."""
    policy = AutoscalingPolicy(
        policy_function=f"{__name__}:{Wanted.__name__}", policy_kwargs={"prefix": prefix, "slug": slug}
    )
    return AutoscalingConfig(
        min_replicas=0,
        initial_replicas=first,
        max_replicas=_MOST,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=policy,
    )
