"""Every Redis key: its name, type, lifetime and writer. Nothing else writes a key by hand.

| key                 | type   | lifetime               | written by        | holds                                 |
|---------------------|--------|------------------------|-------------------|---------------------------------------|
| job:{id}            | hash   | waiting, then result   | queue             | record, state, last, attempts, fence, |
|                     |        |                        |                   | taken, recorded, and where it counts: |
|                     |        |                        |                   | queue, entry, live, running           |
| events:{id}         | stream | as job:{id}            | queue             | `e`: one Event as JSON                |
| queue:{slug}        | stream | forever                | queue             | `job`: ids; group `workers`           |
| session:{sid}       | stream | while its socket lives | sessions, queue   | `tenant`, then `job`                  |
| live:{slug}:{tenant} | set   | waiting, renewed       | queue             | ids of a tenant's jobs not ended      |
| running:{tenant}    | set    | waiting, renewed       | queue             | ids of a tenant's jobs that run       |
| api_keys            | hash   | forever                | tenants           | SHA-256 of a secret -> ApiKey         |
| rate:{tenant}:{min} | string | two minutes            | tenants           | requests in that minute               |
| models              | hash   | forever                | models            | slug -> ModelCard as JSON             |
| environment         | string | forever                | models            | workers' Python and packages          |
| replicas:{slug}     | set    | forever                | models            | replica ids                           |
| replica:{slug}:{id} | string | three heartbeats       | models            | Replica as JSON                       |
| secret:results      | string | forever                | results           | key that signs result URLs            |
"""


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.models = f"{prefix}models"
        self.environment = f"{prefix}environment"
        self.api_keys = f"{prefix}api_keys"
        self.result_secret = f"{prefix}secret:results"

    def job(self, job_id: str) -> str:
        return f"{self._prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self._prefix}events:{job_id}"

    def queue(self, slug: str) -> str:
        return f"{self._prefix}queue:{slug}"

    def live(self, slug: str, tenant: str) -> str:
        return f"{self._prefix}live:{slug}:{tenant}"

    def running(self, tenant: str) -> str:
        return f"{self._prefix}running:{tenant}"

    def rate(self, tenant: str, minute: int) -> str:
        return f"{self._prefix}rate:{tenant}:{minute}"

    def session(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    def replicas(self, slug: str) -> str:
        return f"{self._prefix}replicas:{slug}"

    def replica(self, slug: str, replica_id: str) -> str:
        return f"{self._prefix}replica:{slug}:{replica_id}"
