"""What lies in the file store of jobs that are known no more: `{folder}/{job id}/...`."""

from redis.asyncio import Redis

from interlace_state.files import Files
from interlace_state.keys import Keys

_BATCH = 500


async def collect(redis: Redis, keys: Keys, files: Files, folder: str) -> int:
    """Remove the folders of such jobs; returns how many."""
    gone = await unknown(redis, keys, sorted({name.partition("/")[0] for name in await files.names(folder)}))
    for job_id in gone:
        await files.delete_folder(f"{folder}/{job_id}")
    return len(gone)


async def unknown(redis: Redis, keys: Keys, jobs: list[str]) -> list[str]:
    """Those of some jobs' ids that are known no more."""
    gone: list[str] = []
    for first in range(0, len(jobs), _BATCH):
        batch = jobs[first : first + _BATCH]
        async with redis.pipeline(transaction=False) as pipe:
            for job_id in batch:
                pipe.exists(keys.job(job_id))
            there = await pipe.execute()
        gone += [job_id for job_id, is_there in zip(batch, there, strict=True) if not is_there]
    return gone
