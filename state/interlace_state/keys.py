"""Every Redis key: its name, type, lifetime and writer. Nothing else writes a key by hand.

| key                  | type   | lifetime               | written by      | holds                                     |
|----------------------|--------|------------------------|-----------------|-------------------------------------------|
| job:{id}             | hash   | waiting, then result   | queue           | record, state, last, attempts, fence,     |
|                      |        |                        |                 | worker, entry, times in ms                |
| events:{id}          | stream | as job:{id}            | queue           | `e`: one Event as JSON                    |
| queue:{slug}:{tenant}| stream | while it has jobs      | queue           | `job`: ids; group `workers` is the cursor |
| tenants:{slug}       | set    | forever                | queue           | tenants that have such a stream           |
| turn:{slug}          | zset   | forever                | queue           | tenants that wait -> virtual time         |
| fair:{slug}          | hash   | forever                | queue           | `clock`, `t:{tenant}`: virtual times;     |
|                      |        |                        |                 | `seconds` of a usual job; counters        |
| leases:{slug}        | zset   | forever                | queue           | jobs that workers hold -> deadline in ms; |
|                      |        |                        |                 | 0: given back                             |
| live:{slug}:{tenant} | zset   | waiting, renewed       | queue           | a tenant's jobs not ended -> their order  |
| running:{tenant}     | set    | waiting, renewed       | queue           | ids of a tenant's jobs that run           |
| bell:{id}            | stream | a minute               | following       | ends a read of many jobs' events early    |
| changed:{tenant}     | channel|                        | queue, jobs     | ids of a tenant's jobs that have changed  |
| shares, shares:set   | hash   | forever                | queue, control  | tenant -> jobs that may run at a time: as |
|                      |        |                        |                 | it came, and what an operator has set     |
| wake:{slug}          | list   | a minute               | queue           | one token for each job that came          |
| picked:{token}       | hash   | a minute               | queue           | job, fence: what a call to `pick` leased; |
|                      | / list |                        |                 | of a call to `company`, pairs of them     |
| apart:{slug}:{tenant}| list   | waiting                | queue           | ids of jobs that were given back to run   |
|                      |        |                        |                 | alone, before the rest of the queue       |
| party:{id}           | hash   | waiting                | queue           | jobs that run together: `members`, and    |
|                      |        |                        |                 | until when their seconds are counted      |
| idem:{tenant}:{hash} | hash   | as its job             | queue           | job, payload: of an idempotency key       |
| jobs, jobs:{tenant}  | zset   | forever                | queue, jobs     | job ids -> when they came, in ms          |
| cancelled, stopping  | channel|                        | queue           | ids of jobs that were just cancelled, or  |
|                      |        |                        |                 | asked to end with what they have          |
| weights,             | hash   | forever                | control         | tenant -> weight: an operator's, and the  |
| weights:configured   |        |                        |                 | configuration's                           |
| limits               | hash   | forever                | control         | tenant -> LimitChanges as JSON            |
| paused, drained      | set    | forever                | control         | slugs of models; ids of replicas          |
| session:{sid}        | stream | while its socket lives | sessions, queue | `tenant`, then `job`                      |
| api_keys             | hash   | forever                | tenants         | SHA-256 of a secret -> ApiKey             |
| visit:{hash}         | string | page.session_seconds   | visits          | an API key that only the visitor's cookie |
|                      |        |                        |                 | opens; the name is that cookie's SHA-256  |
| rate:{tenant}:{min}  | string | two minutes            | entrance        | requests in that minute                   |
| models               | hash   | forever                | models          | slug -> ModelCard as JSON                 |
| speeds               | hash   | forever                | models          | slug -> seconds a token takes, lately     |
| environment          | string | forever                | models          | workers' Python and packages              |
| desired              | hash   | forever                | desired         | slug -> Desired as JSON: what shall be    |
| moments              | hash   | forever                | desired         | slug -> Moment as JSON: what it does now  |
| life                 | stream | forever                | desired, models | `e`: the last 2,000 ModelEvents as JSON   |
| history:{slug}       | list   | forever                | desired         | the last 50 of these moments              |
| replicas:{slug}      | set    | forever                | models          | replica ids                               |
| wanted:{slug}        | string | forever                | models          | how many replicas shall run               |
| replica:{slug}:{id}  | string | three heartbeats       | models          | Replica as JSON                           |
| artifacts            | hash   | forever                | artifacts       | id -> Artifact as JSON; made anew from    |
|                      |        |                        |                 | the manifests in the store if it is lost  |
| artifacts:{tenant}   | set    | forever                | artifacts       | ids of a tenant's artifacts               |
| artifact:{id}:held   | string | ten seconds            | artifacts       | whoever changes or deletes it, or tags it |
| lake:{shelf}         | hash   | forever                | lake            | id -> record as JSON: `models`, `runs`,   |
|                      |        |                        |                 | `tombstones`, `tags`; made anew from the  |
|                      |        |                        |                 | store if it is lost                       |
| lake:version         | string | forever                | lake, artifacts,| counts changes of what the lake shows     |
|                      |        |                        | models          |                                           |
| lake:built           | string | forever                | lake            | Unix time at which this Redis was given   |
|                      |        |                        |                 | what the store knows of the lake          |
| metrics:{replica}    | string | three heartbeats       | metrics         | what a replica measures                   |
| secret:results       | string | forever                | results         | key that signs result URLs                |

The queue's scripts name their keys by themselves: one Redis server holds all of it, not a Redis Cluster.
"""

import re


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.models = f"{prefix}models"
        self.desired = f"{prefix}desired"
        self.moments = f"{prefix}moments"
        self.life = f"{prefix}life"
        self.speeds = f"{prefix}speeds"
        self.environment = f"{prefix}environment"
        self.api_keys = f"{prefix}api_keys"
        self.jobs = f"{prefix}jobs"
        self.cancelled = f"{prefix}cancelled"
        self.stopping = f"{prefix}stopping"
        #: A pattern, of what `changed` names.
        self.changed_of_all = re.sub(r"([\\*?\[\]^-])", r"\\\1", prefix) + "changed:*"
        self.shares = f"{prefix}shares"
        self.set_shares = f"{prefix}shares:set"
        self.weights = f"{prefix}weights"
        self.configured_weights = f"{prefix}weights:configured"
        self.limits = f"{prefix}limits"
        self.paused = f"{prefix}paused"
        self.drained = f"{prefix}drained"
        self.artifacts = f"{prefix}artifacts"
        self.lake_version = f"{prefix}lake:version"
        self.lake_built = f"{prefix}lake:built"
        self.result_secret = f"{prefix}secret:results"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def changed(self, tenant: str) -> str:
        return f"{self.prefix}changed:{tenant}"

    def party(self, party_id: str) -> str:
        return f"{self.prefix}party:{party_id}"

    def events(self, job_id: str) -> str:
        return f"{self.prefix}events:{job_id}"

    def bell(self, follower: str) -> str:
        return f"{self.prefix}bell:{follower}"

    def queue(self, slug: str, tenant: str) -> str:
        return f"{self.prefix}queue:{slug}:{tenant}"

    def tenants(self, slug: str) -> str:
        return f"{self.prefix}tenants:{slug}"

    def leases(self, slug: str) -> str:
        return f"{self.prefix}leases:{slug}"

    def fair(self, slug: str) -> str:
        return f"{self.prefix}fair:{slug}"

    def turn(self, slug: str) -> str:
        return f"{self.prefix}turn:{slug}"

    def wake(self, slug: str) -> str:
        return f"{self.prefix}wake:{slug}"

    def jobs_of(self, tenant: str) -> str:
        return f"{self.prefix}jobs:{tenant}"

    def artifacts_of(self, tenant: str) -> str:
        return f"{self.prefix}artifacts:{tenant}"

    def artifact_held(self, artifact_id: str) -> str:
        return f"{self.prefix}artifact:{artifact_id}:held"

    def lake(self, shelf: str) -> str:
        return f"{self.prefix}lake:{shelf}"

    def metrics(self, replica_id: str) -> str:
        return f"{self.prefix}metrics:{replica_id}"

    def live(self, slug: str, tenant: str) -> str:
        return f"{self.prefix}live:{slug}:{tenant}"

    def running(self, tenant: str) -> str:
        return f"{self.prefix}running:{tenant}"

    def visit(self, digest: str) -> str:
        return f"{self.prefix}visit:{digest}"

    def session(self, session_id: str) -> str:
        return f"{self.prefix}session:{session_id}"

    def replicas(self, slug: str) -> str:
        return f"{self.prefix}replicas:{slug}"

    def history(self, slug: str) -> str:
        return f"{self.prefix}history:{slug}"

    def wanted(self, slug: str) -> str:
        return f"{self.prefix}wanted:{slug}"

    def replica(self, slug: str, replica_id: str) -> str:
        return f"{self.prefix}replica:{slug}:{replica_id}"
