"""What changes at once in the lake is changed one after the other, and what is made anew meanwhile is as it is then."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lakes import MINE, add

from interlace.protocol.artifact import MANIFEST, Artifact
from interlace.protocol.errors import UnknownArtifact
from interlace.protocol.lake import EntryChange
from interlace_state.config import Config
from interlace_state.settings.lake import LakeConfig
from interlace_state.store import State, open_state


def folder(config: Config, artifact: Artifact) -> Path:
    return Path(config.store_url) / "artifacts" / artifact.tenant / artifact.id


def once_read(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], Awaitable[object]]) -> None:
    """Have something happen between a look into a file and what comes of it."""
    real = getattr(owner, name)

    async def then(*args: Any) -> Any:
        found = await real(*args)
        patch.setattr(owner, name, real)
        await act()
        return found

    patch.setattr(owner, name, then)


async def test_what_two_say_at_once_is_all_kept(state: State, config: Config) -> None:
    artifact = await add(state, "one")
    await state.lake.change(MINE, artifact.id, EntryChange(visibility="public"))
    async with open_state(config) as other:
        await asyncio.gather(
            state.lake.change(MINE, artifact.id, EntryChange(visibility="private")),
            *(
                one.lake.change(MINE, artifact.id, EntryChange(declared={f"{number}": "said"}))
                for number, one in enumerate((state, other) * 8)
            ),
        )
    now = await state.artifacts.find(artifact.id, "lab-a")
    assert (now.visibility, len(now.declared)) == ("private", 16)
    assert Artifact.model_validate_json((folder(config, artifact) / MANIFEST).read_bytes()) == now


async def test_what_is_deleted_while_it_changes_stays_deleted(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = await add(state, "one")
    async with open_state(config) as other:
        deleting: list[asyncio.Task[None]] = []

        async def meanwhile() -> None:
            deleting.append(asyncio.create_task(other.artifacts.delete(artifact)))
            await asyncio.wait(deleting, timeout=0.5)  # it waits for the change, or would have ended

        once_read(monkeypatch, state.artifacts, "find", meanwhile)
        await state.artifacts.change(artifact.id, lambda _: {"visibility": "public"})
        await deleting[0]
    assert await state.artifacts.all(None) == []
    assert not folder(config, artifact).exists()


@pytest.mark.parametrize("deletes", [False, True])
async def test_what_changes_while_the_index_is_made_anew_stays_changed(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch, deletes: bool
) -> None:
    artifact = await add(state, "one")
    await state.lake.change(MINE, artifact.id, EntryChange(visibility="public"))

    async def meanwhile() -> None:
        async with open_state(config) as other:
            if deletes:
                await other.artifacts.delete(artifact)
            else:
                await other.lake.change(MINE, artifact.id, EntryChange(visibility="private"))

    once_read(monkeypatch, state.artifacts, "_manifest", meanwhile)
    assert await state.artifacts.rebuild() == (not deletes)
    assert [one.visibility for one in await state.artifacts.all(None)] == ([] if deletes else ["private"])


@pytest.mark.parametrize("removes", [False, True])
async def test_a_tag_that_moves_while_the_index_is_made_anew_has_moved(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch, removes: bool
) -> None:
    one, two = await add(state, "one"), await add(state, "one", mark=1)
    await state.lake.tag(MINE, one.id, "latest")

    async def meanwhile() -> None:
        async with open_state(config) as other:
            if removes:
                await other.lake.untag(MINE, one.id, "latest")
            else:
                await other.lake.tag(MINE, two.id, "latest")

    tags = state.lake._tags
    once_read(monkeypatch, tags, "_kept", meanwhile)
    assert await tags.rebuild() == (not removes)
    assert [tag.id for tag in (await tags.all()).values()] == ([] if removes else [two.id])


async def test_a_tag_goes_with_what_it_points_to(state: State, config: Config) -> None:
    small = config.model_copy(update={"lake": LakeConfig(kept_tags=1)})
    async with open_state(small) as lab:
        artifact = await add(lab, "Secret Project")
        tag = await lab.lake.tag(MINE, artifact.id, "paper")
        await lab.artifacts.delete(artifact)
        with pytest.raises(UnknownArtifact):
            await lab.lake.resolve(MINE, "lake://lab-a/secret-project:paper")
        named = [path for path in Path(config.store_url).rglob("*secret*/*") if path.is_file()]
        assert named == []
        other = await add(lab, "other")
        await lab.lake.tag(MINE, other.id, "paper")  # there is room
        # One that an older version has left there.
        await lab.lake._tags.put("lab-a/secret-project/paper", tag)
        with pytest.raises(UnknownArtifact):
            await lab.lake.resolve(MINE, "lake://lab-a/secret-project:paper")
        assert (await lab.lake.rebuild()).tags == 1
        assert list(await lab.lake._tags.all()) == ["lab-a/other/paper"]
