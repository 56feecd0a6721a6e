"""The lake tells nobody of another's entries, whatever is asked, guessed or said of one's own."""

from typing import Any

from lakes import BASE, CARD, COMMIT, KEY, MINE, MODEL, THEIRS, add, lineage, names

from interlace.protocol.lake import EntryChange
from interlace_state.lake.graph import Viewer
from interlace_state.lake.records import model_id
from interlace_state.store import State


async def test_nothing_that_somebody_asks_or_says_tells_that_anothers_is_there(state: State) -> None:
    await state.models.publish(CARD)
    own = await add(state, "own", tenant="lab-b")
    guessed = [
        "lake://lab-a/secret-project",
        "lake://lab-a/secret-project:latest",
        f"lake://hosted/{KEY.repo_id.replace('/', '-')}",
    ]
    keyed = Viewer("lab-b", models=("lab/other",))  # reaches no model that is here

    async def told(*ids: str) -> list[Any]:
        """All that lab-b hears, with words, names and ids that it may guess."""
        heard: list[Any] = []
        for text in (*guessed, *ids):
            await state.lake.change(THEIRS, own.id, EntryChange(declared={"parent": text, "description": "chimera"}))
            for viewer in (keyed, THEIRS) if "hosted" not in text else (keyed,):
                card = await state.lake.card(viewer, own.id)
                heard.append((await state.lake.lineage(viewer, own.id), card.parents, card.children))
        for word in ("chimera", "chimara"):  # the second is a slip
            heard.append([(one.id, one.score) for one in (await state.lake.search(THEIRS, word)).entries])
        for one in ids:
            for name in ("parent", "child", "ancestor", "descendant", "works-with"):
                heard.append(await names(state, THEIRS, f"{name}:{one}"))
        heard.append(await names(state, keyed, "works-with:lab/tiny"))
        return heard

    base = await add(state, "for tiny", mark=1, tenant="lab-b", base=BASE)
    nobody = "0" * 16
    before = await told(f"artifact:{nobody}", nobody)
    assert [one.state for one in before[0][0].nodes] == ["kept"]
    secret = await add(
        state, "secret project", mark=2, base=BASE, lineage=lineage("j1", params={"prompt": "chimera chimara"})
    )
    await state.lake.tag(MINE, secret.id, "latest")
    after = await told(f"artifact:{secret.id}", secret.id)
    assert str(after).replace(secret.id, nobody) == str(before)

    guessed[:] = [f"lake://lab-a/secret-project@{secret.hash[:12]}"]
    assert [one.state for one in (await told())[0][0].nodes] == ["kept"]
    for shared in ("lake://lab-a/secret-project", f"artifact:{secret.id}", guessed[0]):  # once it is shown, it is found
        await state.lake.change(MINE, secret.id, EntryChange(visibility="public"))
        await state.lake.change(THEIRS, own.id, EntryChange(declared={"parent": shared}))
        assert secret.id in {one.id for one in (await state.lake.lineage(THEIRS, own.id)).nodes}
    assert await names(state, THEIRS, f"works-with:{secret.id}") == [base.name]


async def test_what_compares_two_models_is_none_of_anothers(state: State) -> None:
    await state.models.publish(CARD)
    other = CARD.model_copy(update={"key": KEY.model_copy(update={"repo_id": "lab/other"})})
    await state.models.publish(other)
    sketch = await add(state, "sketch", kind="sketch", base=BASE, lineage=lineage("j1", "lake.sketch@1"))
    ids = (model_id(other.key.canonical, COMMIT), MODEL)
    mine = await state.lake.compare(MINE, *ids)
    assert mine.request is not None
    assert mine.request["params"] == {"other": sketch.ref}
    assert (await state.lake.compare(THEIRS, *ids)).request is None
