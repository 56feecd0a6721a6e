"""The catalogue shows what is hosted, how it does, and the small files that clients need."""

import asyncio
import os

import pytest
from redis.asyncio.connection import AbstractConnection

from interlace.protocol.errors import UnknownModel
from interlace.protocol.model import ModelKey
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.store import State

KEY = ModelKey(repo_id="lab/model")


def card(key: ModelKey = KEY, failure: str | None = None) -> ModelCard:
    return ModelCard(key=key, commit="0" * 40, dtype="float32", config={"n_layer": 2}, failure=failure)


def replica(state: ModelState) -> Replica:
    return Replica(id="r0", state=state, pid=os.getpid(), node="here")


async def test_an_unknown_model_is_refused_with_the_hosted_ones(state: State) -> None:
    await state.models.publish(card())
    with pytest.raises(UnknownModel, match=r"does not host lab/other.*Hosted models: lab/model") as caught:
        await state.models.find(ModelKey(repo_id="lab/other"))
    assert caught.value.hosted == (str(KEY),)


async def test_a_model_is_ready_while_a_replica_is(state: State) -> None:
    await state.models.publish(card())
    assert (await state.models.find(KEY)).state is ModelState.DEPLOYING
    await state.models.beat(KEY, replica(ModelState.DEPLOYING))
    assert (await state.models.find(KEY)).state is ModelState.DEPLOYING
    await state.models.beat(KEY, replica(ModelState.READY))
    assert (await state.models.find(KEY)).state is ModelState.READY
    await state.models.leave(KEY, "r0")
    assert (await state.models.find(KEY)).state is ModelState.DEPLOYING


async def test_memory_that_replicas_share_is_counted_once(state: State) -> None:
    """A process is known by its machine and its id there; a replica that does not say has one of its own."""
    await state.models.publish(card())
    for name, node, holder in (("a", "x", 7), ("b", "x", 7), ("c", "y", 7), ("d", "y", 0), ("e", "y", 0)):
        sign = Replica(id=name, state=ModelState.READY, pid=1, node=node, resident_bytes=100, holder=holder)
        await state.models.beat(KEY, sign)
    assert (await state.models.find(KEY)).resident_bytes == 400


async def test_a_failure_is_told_with_its_reason(state: State) -> None:
    await state.models.publish(card(failure="no weights"))
    found = await state.models.find(KEY)
    assert (found.state, found.card.failure) == (ModelState.FAILED, "no weights")


async def test_all_models_by_repo_id(state: State) -> None:
    keys = [ModelKey(repo_id=repo_id) for repo_id in ("lab/b", "lab/a")]
    await asyncio.gather(*(state.models.publish(card(key)) for key in keys))
    assert [model.card.key.repo_id for model in await state.models.all()] == ["lab/a", "lab/b"]
    await state.models.withdraw(keys[0])
    assert [model.card.key.repo_id for model in await state.models.all()] == ["lab/a"]


async def test_hub_files(state: State) -> None:
    await state.models.put_file(KEY, "config.json", b"{}")
    await state.models.put_file(KEY, "unet/config.json", b"{ }")
    assert await state.models.file_sizes(KEY) == {"config.json": 2, "unet/config.json": 3}
    assert await state.models.file(KEY, "config.json") == b"{}"


@pytest.mark.parametrize("name", ["model.safetensors", "../x", "", "/etc/passwd", "config.json/.."])
async def test_only_published_files_are_there(state: State, name: str) -> None:
    await state.models.put_file(KEY, "config.json", b"{}")
    with pytest.raises(FileNotFoundError):
        await state.models.file(KEY, name)


async def test_publishing_again_drops_files_that_the_model_no_longer_has(state: State) -> None:
    await state.models.replace_files(KEY, {"config.json": b"{}", "unet/config.json": b"{ }"})
    await state.models.replace_files(KEY, {"config.json": b"{  }", "tokenizer.json": b"[]"})
    assert await state.models.file_sizes(KEY) == {"config.json": 4, "tokenizer.json": 2}


async def test_a_withdrawn_model_leaves_no_files(state: State) -> None:
    other = ModelKey(repo_id="lab/other")
    for key in (KEY, other):
        await state.models.publish(card(key))
        await state.models.put_file(key, "unet/config.json", b"{}")
    await state.models.withdraw(KEY)
    assert await state.models.file_sizes(KEY) == {}
    assert await state.models.file_sizes(other) == {"unet/config.json": 2}


async def test_what_an_operator_lets_rest_is_told(state: State) -> None:
    await state.models.publish(card())
    await state.models.beat(KEY, replica(ModelState.READY))
    await state.control.pause(KEY)
    await state.control.drain("r0")
    found = await state.models.find(KEY)
    assert (found.paused, [one.drained for one in found.replicas]) == (True, [True])
    await state.control.resume(KEY)
    await state.control.undrain("r0")
    found = await state.models.find(KEY)
    assert (found.paused, [one.drained for one in found.replicas]) == (False, [False])


async def test_a_model_and_its_replicas_are_two_questions(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request asks it, and each way to Redis and back costs the gateway a quarter of a millisecond."""
    await state.models.publish(card())
    for name in ("r0", "r1"):
        await state.models.beat(KEY, replica(ModelState.READY).model_copy(update={"id": name}))
    await state.control.drain("r1")
    sent = []
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, *args: object, **options: object) -> None:
        sent.append(args)
        await send(self, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    found = await state.models.find(KEY)
    assert [(one.id, one.drained) for one in found.replicas] == [("r0", False), ("r1", True)]
    assert len(sent) == 2


async def test_a_replica_that_has_gone_silent_is_forgotten(state: State) -> None:
    await state.models.publish(card())
    await state.models.beat(KEY, replica(ModelState.READY))
    await state.redis.delete(state.models._keys.replica(KEY.slug, "r0"))
    assert (await state.models.find(KEY)).replicas == ()
    assert await state.redis.smembers(state.models._keys.replicas(KEY.slug)) == set()
