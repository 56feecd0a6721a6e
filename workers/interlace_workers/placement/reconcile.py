"""The placement loop: what Redis says shall be hosted becomes replicas, however often this process starts anew.

Each look compares the records with what runs, and takes one step: find a model's files, give it room, let a runtime
host so many replicas, let an idle one go.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from redis.exceptions import RedisError

from interlace.protocol.hosting import Moment
from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Config
from interlace_state.desired import Desired
from interlace_state.models import ModelState
from interlace_state.store import State
from interlace_state.tasks import cancelled
from interlace_workers.placement import memory
from interlace_workers.placement.feasible import against, forbidden
from interlace_workers.placement.headstart import HeadStarts
from interlace_workers.placement.kept import Kept, Shortage
from interlace_workers.placement.place import Placement, Search, find, refuse, withdraw
from interlace_workers.placement.scaling import Scale, rule, scaled
from interlace_workers.runtimes import Host
from interlace_workers.sources.source import SourceError

LOOK = 0.5  # seconds between two looks
_FORGET_FAILED = 60.0  # seconds after which a request may bring a model again that could not be had

_SAY_AGAIN = 60.0  # seconds after which a trouble that lasts is logged once more


class Reconciler:
    """Makes the records of one Redis prefix true."""

    def __init__(self, config: Config, state: State, ahead: HeadStarts | None, say: Callable[[str], None]) -> None:
        self._config = config
        self._state = state
        #: None where replicas may start on other machines.
        self._ahead = ahead
        self._say = say
        self._kept: dict[str, Kept] = {}
        self._said: dict[str, Moment] = {}
        self._host: Host | None = None
        #: When it was logged last that a step failed, by its name and the error's type.
        self._troubles: dict[tuple[str, type[Exception]], float] = {}

    def kept(self, key: ModelKey) -> Kept | None:
        """What is remembered of a model."""
        return self._kept.get(key.slug)

    async def adopt(self, placements: Sequence[Placement]) -> None:
        """Take over what was found of the configured models; of the others, what could not be found was refused."""
        found = {placement.key: placement for placement in placements}
        policy = self._config.on_demand
        for record in await self._state.desired.all():
            kept = self._kept[record.key.slug] = Kept(record)
            if kept.is_on_demand and not policy.allows(record.key.repo_id):
                await self._state.desired.remove(record.key)
            if record.configured is None or record.configured != record.model:
                continue  # it is found as commands say
            if (placement := found.get(record.key)) is None:
                kept.failed_at = time.monotonic()
                continue
            kept.described = True
            kept.hosted = await self._state.models.look(kept.key)
            await self._take(kept, placement)

    async def run(self, host: Awaitable[Host]) -> None:
        """Look, again and again. The runtime may still be coming up during the first look."""
        try:
            if self._ahead is not None:
                await self._look_calmly()
            self._host = await host
            while True:
                await self._apply_calmly()
                await asyncio.sleep(LOOK)
                await self._look_calmly()
        finally:
            await cancelled(*(kept.finding for kept in self._kept.values() if kept.finding is not None))

    async def _look_calmly(self) -> None:
        with self._calmly("look", RedisError, OSError):  # while Redis is away, all stays as it is
            await self.look()

    async def _apply_calmly(self) -> None:
        with self._calmly("apply", RedisError, OSError):
            await self._apply()

    @contextmanager
    def _calmly(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """What goes wrong is tried again at the next look, and logged once a minute."""
        try:
            yield
        except errors as error:
            now, kind = time.monotonic(), type(error)
            if now - self._troubles.get((what, kind), -math.inf) > _SAY_AGAIN:
                self._troubles[what, kind] = now
                log.warning("placement_failed", step=what, error=f"{kind.__name__}: {error}")

    async def look(self) -> None:
        """Decide how many replicas of each model may run now."""
        records = {record.key.slug: record for record in await self._state.desired.all()}
        for slug in self._kept.keys() - records.keys():
            self._kept[slug].leave(for_good=True)
        for slug, record in records.items():
            self._kept.setdefault(slug, Kept(record)).renewed(record)
        now = time.monotonic()
        for kept in self._kept.values():
            await self._see(kept, now)
        # Who has waited for longest is asked first.
        for kept in sorted(self._kept.values(), key=lambda one: one.record.asked_at):
            with self._calmly(f"settle {kept.key}", OSError):  # the others have their turn
                await self._settle(kept, now)

    async def _see(self, kept: Kept, now: float) -> None:
        queue = self._state.queue
        kept.looked_at(await queue.length(kept.key), await queue.submitted(kept.key), now)
        kept.live = 0 if self._host is None else await self._live(kept)
        kept.hosted = await self._state.models.look(kept.key)
        loaded = kept.placement is not None and not kept.leaving and kept.failed_at is None
        if loaded and kept.hosted is not None and kept.hosted.state is ModelState.FAILED:  # a replica has said so
            kept.failed_at, kept.target = now, 0

    async def _live(self, kept: Kept) -> int:
        assert self._host is not None
        if kept.target and not kept.leaving and not kept.record.resting:
            return kept.target  # asking Ray takes a while, and only matters where something has to go first
        needed = kept.live or kept.leaving or kept.record.resting
        return await self._host.live(kept.key) if needed else 0

    async def _settle(self, kept: Kept, now: float) -> None:
        """One model's step."""
        if kept.leaving:
            await self._leave(kept)
            if kept.leaving or kept.for_good:
                return
        if kept.failed_at is not None:
            kept.target = 0
            if kept.is_on_demand and now - kept.failed_at > _FORGET_FAILED:
                await self._state.desired.remove(kept.key)
            return
        if kept.finding is not None:
            await self._found(kept)
            if kept.placement is None or kept.finding is not None or kept.failed_at is not None:
                return
        wanted = await self._wanted(kept, now)
        if kept.placement is None:
            small = kept.is_on_demand and not wanted
            if (reason := self._forbidden(kept)) is not None:
                await self._fail(kept, reason)
            elif not (small and kept.described):
                self._find(kept, small=small)
            return
        if wanted <= kept.target:
            kept.target, kept.shortage = wanted, None
        else:
            kept.target = await self._admitted(kept, wanted)
        kept.pending = ""
        if self._host is not None and kept.replicas < kept.target:
            kept.pending = await self._host.lacking(kept.placement)

    async def _leave(self, kept: Kept) -> None:
        """First what runs goes, and its jobs end or wait; then it starts anew, or is forgotten."""
        if kept.finding is not None:
            await cancelled(kept.finding)
            kept.finding = None
        if kept.for_good:
            await self._state.models.withdraw(kept.key)  # first, so that no job comes any more
        if kept.live:
            return
        self._withdraw_ahead(kept)
        self._said.pop(kept.key.slug, None)
        if self._host is not None:
            await self._host.drop(kept.key)
        if kept.for_good:
            del self._kept[kept.key.slug]
            await withdraw(self._state, kept.key)
            return
        kept.leaving, kept.placement, kept.described = False, None, False
        if kept.hosted is not None and kept.hosted.card.failure is not None:
            await self._state.models.publish(kept.hosted.card.model_copy(update={"failure": None}))
            kept.hosted = await self._state.models.look(kept.key)

    async def _wanted(self, kept: Kept, now: float) -> int:
        """How many replicas its jobs need."""
        if kept.record.resting:
            paused = kept.hosted is not None and kept.hosted.paused
            if not kept.jobs or paused or kept.live:
                kept.scale = Scale(0)
                return 0
            await self._rest(kept, resting=False)
        elif kept.rests(now) and kept.target:
            await self._rest(kept, resting=True)
            log.info("idle", model=str(kept.key), seconds=kept.record.model.idle_seconds)
            return 0
        kept.scale = scaled(rule(kept.record.model), kept.scale, kept.jobs, now)
        return kept.scale.replicas

    async def _rest(self, kept: Kept, *, resting: bool) -> None:
        record = await self._state.desired.rest(kept.key, resting)
        if record is not None:
            kept.record = record
        if resting:
            kept.target, kept.scale = 0, Scale(0)

    def _forbidden(self, kept: Kept) -> str | None:
        return forbidden(kept.record.model, kept.record.configured, self._config.deploy)

    def _find(self, kept: Kept, *, small: bool) -> None:
        """Have its files looked for, and fetched."""
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            loop.call_soon_threadsafe(setattr, kept, "progress", (done, total))

        most = self._config.on_demand.size_bytes if kept.is_on_demand else None
        model = kept.record.model.model_copy(update={"threads": self._threads(kept.record)})
        search = Search(self._say, None if small else tell, most, small)
        kept.small = small
        kept.finding = asyncio.create_task(find(self._config, self._state, model, search), name=f"find {kept.key}")

    def _threads(self, record: Desired) -> int:
        """Processor threads for one job: as asked for, or the cores shared evenly among the slots of what is here."""
        here = [one.record for one in self._kept.values() if one.target or one.record.key == record.key]
        slots = sum(rule(one.model).most * one.model.slots for one in here)
        return record.model.threads or max(1, (os.cpu_count() or 1) // max(1, slots))

    async def _found(self, kept: Kept) -> None:
        assert kept.finding is not None
        if not kept.finding.done():
            return
        if kept.progress is not None:
            await self._tell(kept)  # a small download is over before anybody has looked
        task, kept.finding, kept.progress = kept.finding, None, None
        small = kept.small
        try:
            placement = task.result()
        except SourceError as error:
            await self._fail(kept, str(error))
            return
        if placement.key != kept.key:
            await self._rename(kept, placement.key)
            return
        kept.described = True
        kept.hosted = await self._state.models.look(kept.key)
        await self._state.models.want(kept.key, 0)
        await self._take(kept, None if small else placement)

    async def _take(self, kept: Kept, placement: Placement | None) -> None:
        """Host it so, unless that cannot be."""
        checkpoint = {} if kept.hosted is None else kept.hosted.card.config
        if (reason := against(kept.record.model, checkpoint, self._config)) is not None:
            await self._fail(kept, reason)
        elif placement is not None:
            kept.placement = self._met(replace(placement, generation=kept.record.generation))

    def _met(self, placement: Placement) -> Placement:
        """Its replicas share the weights, and the first finds them half loaded, where all are on this machine."""
        if self._ahead is None:
            return placement
        name = f"{placement.key.slug}-{placement.generation}"
        if not placement.model.gpus:
            placement = replace(placement, ahead=str(self._ahead.place(name)))
        if placement.load.resident:
            return placement
        return replace(placement, share=str(self._ahead.meeting_place(name)))

    async def _rename(self, kept: Kept, key: ModelKey) -> None:
        """The hub writes its name in another way than whoever asked for it, and clients will, too."""
        if kept.is_on_demand:
            await self._fail(kept, f"It is {key}: ask for it by this name.")
            return
        record = kept.record.model_copy(update={"key": key})
        await self._state.desired.change(key, lambda former: former or record)
        await self._state.desired.remove(kept.key)

    async def _fail(self, kept: Kept, reason: str) -> None:
        kept.failed_at, kept.target = time.monotonic(), 0
        await refuse(self._state, kept.key, kept.record.model, reason)
        kept.hosted = await self._state.models.look(kept.key)
        self._say(f"{kept.key}: {reason}")

    async def _admitted(self, kept: Kept, wanted: int) -> int:
        """How many replicas there is room for; who must leave for the first one is told to."""
        assert kept.placement is not None
        former, kept.shortage = kept.shortage, None
        while kept.target < wanted:
            if kept.target and kept.placement.share and not kept.is_ready:
                break  # the others share what the first one loads
            verdict = await self._judge(kept)
            if not verdict.fits:
                if not kept.target and not verdict.waits:
                    await self._fail(kept, verdict.text)
                    return 0
                if not kept.target:
                    await self._let_go(verdict.leave, kept)
                    kept.shortage = Shortage(0, wanted, verdict.text)
                    break
                if former is None or (former.has, former.needs) != (kept.target, wanted):
                    text = f"{kept.target} of {wanted} replicas have room. {verdict.text}"
                    former = Shortage(kept.target, wanted, text)
                kept.shortage = former  # what is free changes at each look: its numbers stay those of the first one
                break
            if not kept.target and not kept.is_ready and self._ahead is not None and kept.placement.ahead:
                self._ahead.start(kept.placement.load, Path(kept.placement.ahead))
            kept.target += 1
        return kept.target

    async def _judge(self, kept: Kept) -> memory.Verdict:
        others = [one for one in self._kept.values() if one.planned_bytes]
        planned = sum(one.planned_bytes for one in others)
        resident = sum(one.resident_bytes for one in others)
        if self._host is None:  # it is this machine, or nothing runs yet
            rooms: Sequence[memory.Room] = [memory.this_machine(self._config, planned, resident)]
        else:
            rooms = await self._host.rooms(planned, resident)
        if kept.target:
            return memory.room_for_another(kept.more_bytes, rooms)
        occupants = [one.occupies() for one in others if one is not kept]
        return memory.judge(kept.more_bytes, rooms, occupants, self._config.memory)

    async def _let_go(self, names: Sequence[str], for_whom: Kept) -> None:
        for kept in self._kept.values():
            if str(kept.key) in names:
                await self._rest(kept, resting=True)
                log.info("evicted", model=str(kept.key), **{"for": str(for_whom.key)})

    def _withdraw_ahead(self, kept: Kept) -> None:
        if self._ahead is not None and kept.placement is not None and kept.placement.ahead:
            self._ahead.withdraw(Path(kept.placement.ahead))

    async def _apply(self) -> None:
        """Have the runtime host what was decided, and say where each model stands."""
        assert self._host is not None
        wanted = []
        for kept in self._kept.values():
            if kept.placement is not None and kept.described:
                if kept.hosted is not None and kept.hosted.wanted != kept.target:
                    await self._state.models.want(kept.key, kept.target)
                wanted.append((kept.placement, kept.target))
            if not kept.target or kept.is_ready:  # by one that was about to stop, perhaps
                self._withdraw_ahead(kept)
        await self._host.keep(wanted)
        for kept in list(self._kept.values()):
            await self._tell(kept)

    async def _tell(self, kept: Kept) -> None:
        moment, slug = kept.moment(time.monotonic(), round(time.time(), 3)), kept.key.slug
        said = self._said.get(slug)
        if said is None or moment.model_copy(update={"at": said.at}) != said:
            self._said[slug] = moment
            await self._state.desired.say(kept.key, moment)
            if said is None or said.phase is not moment.phase:
                log.info("phase", model=str(kept.key), phase=moment.phase, text=moment.text)
                with log.instead_of(OSError, "audit_failed"):
                    self._state.audit.write("model", model=str(kept.key), phase=moment.phase, text=moment.text)
