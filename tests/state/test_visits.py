"""Who has signed in to the pages; a job's last lines and the audit log's, which pages show."""

from pathlib import Path

from meeting import lease, submitted

from interlace.protocol.event import Log, Progress
from interlace_state.audit import Audit
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.store import State


async def test_a_visit_stands_for_its_key(state: State, config: Config) -> None:
    key, secret = await state.tenants.mint("lab")
    assert await state.visits.open("il-guess", 60) is None
    visit = await state.visits.open(secret, 60)
    assert visit is not None
    assert await state.visits.find(visit) == key
    assert await state.visits.secret(visit) == secret
    other = await state.visits.open(secret, 60)
    names = [name async for name in state.redis.scan_iter(Keys(config.redis.prefix).visit("*"))]
    kept = [await state.redis.get(name) for name in names]
    assert len(set(kept)) == 2, "each visit has a pad of its own"
    assert not any(secret.encode() in one for one in kept)
    await state.visits.close(visit)
    assert await state.visits.find(visit) is None
    assert other is not None
    await state.tenants.revoke(key.id)
    assert await state.visits.find(other) is None


async def test_the_last_lines_of_a_job(state: State) -> None:
    job = await submitted(state)
    assert await state.events.lines(job.id, 5) == ([], False)
    held = await lease(state)
    for number in range(300):  # more than are read at a time
        assert await state.queue.record(held, Log(text=f"line {number}"), Progress(step=number))
    assert await state.events.lines(job.id, 3) == (["line 297", "line 298", "line 299"], True)
    lines, more = await state.events.lines(job.id, 300)
    assert (lines[0], lines[-1], len(lines), more) == ("line 0", "line 299", 300, False)


def test_the_newest_lines_of_the_audit_log(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    assert audit.last(5) == []
    for number in range(4):
        audit.write("looked", tenant=f"lab-{number % 2}", number=number)
    with audit.path.open("a") as file:
        file.write('{"cut')
    assert [line["number"] for line in audit.last(2)] == [3, 2]
    assert [line["number"] for line in audit.last(9, "lab-0")] == [2, 0]
