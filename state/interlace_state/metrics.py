"""What replicas measure, on its way to whoever asks a gateway. A replica that goes silent is forgotten."""

from collections.abc import Iterable
from dataclasses import dataclass

from redis.asyncio import Redis

from interlace_state.keys import Keys
from interlace_state.models import HEARTBEAT, HostedModel

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """One replica's metrics a few seconds ago, in Prometheus' text format."""

    model: str
    replica: str
    text: str


class ReplicaMetrics:
    """The last snapshot of each replica."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def publish(self, replica_id: str, text: bytes) -> None:
        """Call with each heartbeat; a snapshot counts for three of them. Raises ValueError for one over 1 MiB."""
        if len(text) > _MOST_BYTES:
            raise ValueError(f"a replica's metrics have {len(text):,} bytes; at most {_MOST_BYTES:,} are kept")
        await self._redis.set(self._keys.metrics(replica_id), text, px=int(HEARTBEAT * 3000))

    async def of(self, models: Iterable[HostedModel]) -> list[Snapshot]:
        """What the replicas of these models said last."""
        named = [(str(model.card.key), replica.id) for model in models for replica in model.replicas]
        if not named:
            return []
        found = await self._redis.mget([self._keys.metrics(replica) for _, replica in named])
        pairs = zip(named, found, strict=True)
        return [Snapshot(model, replica, text.decode()) for (model, replica), text in pairs if text is not None]
