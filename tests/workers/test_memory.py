"""Room for a replica: who leaves for it, who never does, and the numbers of a refusal."""

from hypothesis import given
from hypothesis import strategies as st

from interlace_state.config import Config
from interlace_state.hostable import BASE_BYTES
from interlace_state.settings.hosting import MemoryConfig
from interlace_workers.placement.memory import Occupant, Room, judge, need, this_machine

GIB = 1 << 30
SETTINGS = MemoryConfig()


def occupant(name: str, size: int, used_at: float = 0.0, stays: str = "", *, later: bool = False) -> Occupant:
    return Occupant(name, {"here": size}, used_at, stays, later)


def test_it_fits_where_it_is_free() -> None:
    assert judge(GIB, [Room("here", 4 * GIB, GIB)], [occupant("idle", 2 * GIB)], SETTINGS).fits


def test_the_least_recently_used_leaves_and_no_more_than_must() -> None:
    there = [occupant("old", GIB, 1.0), occupant("older", GIB, 0.0), occupant("new", GIB, 9.0)]
    verdict = judge(2 * GIB, [Room("here", 4 * GIB, GIB // 2)], there, SETTINGS)
    assert (verdict.fits, verdict.leave) == (False, ("older", "old"))


def test_nobody_leaves_who_is_pinned_or_busy() -> None:
    there = [occupant("pinned", 2 * GIB, 0.0, "pinned"), occupant("busy", 2 * GIB, 1.0, "2 jobs", later=True)]
    waits = judge(2 * GIB, [Room("here", 4 * GIB, 0)], there, SETTINGS)
    assert (waits.leave, waits.waits) == ((), True)
    assert "It needs 2.00 GiB of memory, and 0.00 GiB of 4.00 GiB are free." in waits.text
    assert "In memory: pinned (pinned); busy (2 jobs)." in waits.text
    never = judge(3 * GIB, [Room("here", 4 * GIB, 0)], there, SETTINGS)
    assert (never.leave, never.waits) == ((), False)
    assert "Reserved for jobs: 0.50 GiB (`memory.spare_bytes`)." in never.text
    assert "limit_bytes" not in never.text
    bounded = judge(3 * GIB, [Room("here", 2 * GIB, 0)], there, MemoryConfig(limit_bytes=2 * GIB))
    assert "All models together may take 2.00 GiB (`memory.limit_bytes`). Reserved for jobs" in bounded.text


def test_who_leaves_already_is_counted_and_nobody_else_goes() -> None:
    there = [Occupant("going", {"here": GIB}, 5.0, "leaving", later=True, going=True), occupant("idle", GIB, 0.0)]
    verdict = judge(GIB, [Room("here", 4 * GIB, 0)], there, SETTINGS)
    assert (verdict.fits, verdict.leave, verdict.waits) == (False, (), True)
    assert "Leaving: going." in verdict.text


def test_of_two_machines_the_one_where_fewer_must_leave() -> None:
    rooms = [Room("a", 4 * GIB, 0), Room("b", 4 * GIB, GIB)]
    there = [Occupant("x", {"a": GIB}, 0.0), Occupant("y", {"a": GIB}, 1.0), Occupant("z", {"b": GIB}, 2.0)]
    assert judge(2 * GIB, rooms, there, SETTINGS).leave == ("z",)


_OCCUPANTS = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0, 100), st.sampled_from(["", "pinned", "1 job"])), max_size=6
)


@given(st.integers(1, 100), st.integers(0, 60), _OCCUPANTS)
def test_what_leaves_is_enough_and_none_of_it_could_stay(
    wanted: int, free: int, found: list[tuple[int, float, str]]
) -> None:
    there = [occupant(str(index), size, used, stays) for index, (size, used, stays) in enumerate(found)]
    verdict = judge(wanted, [Room("here", 200, free)], there, SETTINGS)
    sizes = {one.name: one.on["here"] for one in there if not one.stays}
    assert set(verdict.leave) <= set(sizes)
    if verdict.leave:
        assert free + sum(sizes[name] for name in verdict.leave) >= wanted
        assert free + sum(sizes[name] for name in verdict.leave[:-1]) < wanted
    elif not verdict.fits:
        assert free + sum(sizes.values()) < wanted


def test_what_a_replica_takes() -> None:
    assert need(GIB, MemoryConfig(margin=0.5)) == GIB + GIB // 2 + BASE_BYTES
    assert need(None, SETTINGS) == BASE_BYTES


def test_what_is_planned_and_not_there_yet_is_not_free() -> None:
    config = Config()
    free = this_machine(config, 0, 0).free
    # Two looks at a machine on which others work differ by less than this.
    assert abs(this_machine(config, 64 * GIB, 0).free - (free - 64 * GIB)) < 4 * GIB
    assert abs(this_machine(config, 64 * GIB, 64 * GIB).free - free) < 4 * GIB
    bounded = Config(memory=MemoryConfig(limit_bytes=1000))
    assert this_machine(bounded, 400, 400).free == 600
