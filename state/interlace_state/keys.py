"""Every Redis key: its name, type, lifetime and writer. Nothing else writes a key by hand.

| key                 | type   | lifetime               | written by        | holds                                 |
|---------------------|--------|------------------------|-------------------|---------------------------------------|
| job:{id}            | hash   | waiting, then result   | queue             | record, state, last, attempts, fence, |
|                     |        |                        |                   | taken, recorded                       |
| events:{id}         | stream | as job:{id}            | queue             | `e`: one Event as JSON                |
| queue:{slug}        | stream | forever                | queue             | `job`: ids; group `workers`           |
| session:{sid}       | stream | while its socket lives | sessions, queue   | `tenant`, then `job`                  |
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
        self.result_secret = f"{prefix}secret:results"

    def job(self, job_id: str) -> str:
        return f"{self._prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self._prefix}events:{job_id}"

    def queue(self, slug: str) -> str:
        return f"{self._prefix}queue:{slug}"

    def session(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    def replicas(self, slug: str) -> str:
        return f"{self._prefix}replicas:{slug}"

    def replica(self, slug: str, replica_id: str) -> str:
        return f"{self._prefix}replica:{slug}:{replica_id}"
