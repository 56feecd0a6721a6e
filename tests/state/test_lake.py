"""The lake knows all that is hosted or made, tells each viewer what is theirs, and is made anew from the store."""

import json
from pathlib import Path
from typing import Any

import pytest
from lakes import BASE, CARD, KEY, MINE, MODEL, THEIRS, add, lineage, names, ran

from interlace.protocol.errors import InvalidRequest, LimitExceeded, UnknownArtifact
from interlace.protocol.lake import EntryChange, Measured
from interlace_state.config import Config
from interlace_state.lake.graph import Viewer
from interlace_state.lake.records import Heritage, model_id
from interlace_state.settings.lake import LakeConfig
from interlace_state.store import State, open_state


async def test_what_is_hosted_or_made_is_found_without_anybodys_doing(state: State) -> None:
    await state.models.publish(CARD)
    texts = await add(state, "Potter corpus", kind="texts")
    made = await add(
        state,
        "no wizards",
        base=BASE,
        lineage=lineage("j1", parents=(texts.ref,), metrics=(Measured(name="forgetting", value=0.9),)),
    )
    assert await names(state, MINE, "") == ["no wizards", "Potter corpus", "lab/tiny"]
    assert await names(state, MINE, "wizard") == ["no wizards"]
    assert (await names(state, MINE, "erasing a concept"))[0] == "no wizards"  # by what its method is called
    assert await names(state, MINE, "kind:model arch:gpt2 task:text-generation state:hosted") == ["lab/tiny"]
    assert await names(state, MINE, "method:elm base:tiny") == ["no wizards"]
    assert await names(state, MINE, "works-with:lab/tiny") == ["no wizards"]
    assert await names(state, MINE, f"parent:{texts.id}") == ["no wizards"]
    assert await names(state, MINE, f"ancestor:{MODEL}") == ["no wizards"]
    assert sorted(await names(state, MINE, f"descendant:{made.id}")) == ["Potter corpus", "lab/tiny"]
    assert await names(state, MINE, "metric:forgetting>0.8") == ["no wizards"]
    assert await names(state, MINE, "metric:forgetting<0.8") == []
    page = await state.lake.search(MINE, "", limit=1, offset=1)
    assert ([one.name for one in page.entries], page.total) == (["Potter corpus"], 3)
    assert page.facets["kind"] == {"peft": 1, "texts": 1, "model": 1}
    with pytest.raises(InvalidRequest, match=r"no filter; there are: .*works-with"):
        await state.lake.search(MINE, "colour:red")


async def test_metrics_rank_what_has_them(state: State) -> None:
    for number in range(4):
        measured = () if number == 3 else (Measured(name="accuracy", value=number / 10),)
        await add(state, f"n{number}", mark=number, lineage=lineage(f"j{number}", metrics=measured))
    assert await names(state, MINE, "sort:-accuracy") == ["n2", "n1", "n0"]
    assert await names(state, MINE, "sort:accuracy metric:accuracy>=0.1") == ["n1", "n2"]
    assert await names(state, MINE, "sort:name") == ["n0", "n1", "n2", "n3"]


async def test_lineage_is_a_graph_that_outlives_what_is_deleted(state: State) -> None:
    await state.models.publish(CARD)
    one = await add(state, "one", base=BASE, lineage=lineage("j1"))
    two = await add(state, "two", mark=2, base=BASE, lineage=lineage("j2", parents=(one.ref,)))
    other = await add(state, "other", mark=3, base=BASE, lineage=lineage("j3"))
    merged = await add(state, "merged", mark=4, base=BASE, lineage=lineage("j4", parents=(two.ref, other.ref)))
    graph = await state.lake.lineage(MINE, merged.id)
    assert {(edge.parent, edge.child, edge.relation) for edge in graph.edges} == {
        *((MODEL, child.id, "base") for child in (one, two, other, merged)),
        (one.id, two.id, "input"),
        (two.id, merged.id, "input"),
        (other.id, merged.id, "input"),
    }
    assert {node.id: node.depth for node in graph.nodes} == {
        merged.id: 0, two.id: -1, other.id: -1, MODEL: -1, one.id: -2,
    }  # fmt: skip
    near = await state.lake.lineage(MINE, merged.id, 1)
    assert near.truncated
    assert not graph.truncated
    assert one.id not in {node.id for node in near.nodes}

    await state.artifacts.delete(two)
    with pytest.raises(UnknownArtifact):
        await state.lake.card(MINE, two.id)
    after = await state.lake.lineage(MINE, merged.id)
    assert {(edge.parent, edge.child) for edge in after.edges} == {(edge.parent, edge.child) for edge in graph.edges}
    stone = next(node for node in after.nodes if node.id == two.id)
    assert (stone.state, stone.label, stone.kind) == ("deleted", "", "peft")
    assert (await state.lake.lineage(MINE, two.id)).root == two.id
    assert "two" not in (await state.redis.hget(state.lake._tombstones._hash, two.id)).decode()


async def test_what_a_run_takes_back_leaves_no_tombstone(state: State) -> None:
    artifact = await add(state, "half")
    await state.artifacts.delete(artifact, undo=True)
    with pytest.raises(UnknownArtifact):
        await state.lake.lineage(MINE, artifact.id)


async def test_a_model_that_is_hosted_no_more_stays_in_lineage(state: State) -> None:
    await state.models.publish(CARD)
    made = await add(state, "made", base=BASE, lineage=lineage("j1"))
    await state.models.withdraw(KEY)
    assert (await state.lake.entry(MINE, MODEL)).state == "away"
    assert await names(state, MINE, "works-with:lab/tiny") == []
    assert {node.id: node.state for node in (await state.lake.lineage(MINE, made.id)).nodes} == {
        made.id: "kept", MODEL: "away",
    }  # fmt: skip
    await state.models.publish(CARD)
    assert (await state.lake.entry(MINE, MODEL)).state == "hosted"


async def test_each_sees_what_is_theirs(state: State) -> None:
    key, _ = await state.tenants.mint("lab-a")
    colleague, _ = await state.tenants.mint("lab-a")
    of_key = Viewer("lab-a", keys=await state.tenants.former(key.id))
    of_colleague = Viewer("lab-a", keys=await state.tenants.former(colleague.id))
    artifact = await add(state, "one", creator=key.id)
    child = await add(state, "child", mark=1, tenant="lab-b", lineage=lineage("j1", parents=(artifact.ref,)))

    async def seeing() -> list[bool]:
        found = [await names(state, one, "owner:lab-a") for one in (of_key, of_colleague, THEIRS)]
        return [one == ["one"] for one in found]

    assert await seeing() == [True, True, False]
    nodes = (await state.lake.lineage(THEIRS, child.id)).nodes
    node = next(one for one in nodes if one.id == artifact.id)
    assert (node.state, node.label, node.kind) == ("hidden", "", "")
    await state.lake.change(of_key, artifact.id, EntryChange(visibility="private"))
    assert await seeing() == [True, False, False]
    for asking, expected in ((key.id, True), (colleague.id, False)):
        if expected:
            assert (await state.artifacts.find(artifact.id, "lab-a", key=asking)).id == artifact.id
        else:
            with pytest.raises(UnknownArtifact):
                await state.artifacts.find(artifact.id, "lab-a", key=asking)
    rotated = await state.tenants.rotate(key.id, 60)
    assert rotated is not None
    assert (await state.artifacts.find(artifact.id, "lab-a", key=rotated[0].id)).id == artifact.id
    await state.lake.change(of_key, artifact.id, EntryChange(visibility="public"))
    assert await seeing() == [True, True, True]
    assert (await state.artifacts.find(artifact.id, "lab-b")).id == artifact.id
    with pytest.raises(UnknownArtifact):
        await state.artifacts.find(artifact.id, "lab-b", own=True)
    with pytest.raises(UnknownArtifact):  # to read, not to change
        await state.lake.change(THEIRS, artifact.id, EntryChange(declared={"license": "mine"}))
    with pytest.raises(UnknownArtifact):
        await state.lake.tag(THEIRS, artifact.id, "latest")


async def test_versions_have_hashes_and_tags_move(state: State) -> None:
    first, second = await add(state, "No Wizards!"), await add(state, "no wizards", mark=1)
    entries = await state.lake.versions(MINE, first.id)
    assert [(one.id, one.version) for one in entries] == [(second.id, 2), (first.id, 1)]
    assert entries[0].ref == f"lake://lab-a/no-wizards@{second.hash[:16]}"
    await state.lake.tag(MINE, first.id, "paper")
    for ref, expected in (
        ("lake://lab-a/no-wizards", second),
        (f"lake://lab-a/no-wizards@{first.hash[:12]}", first),
        ("lake://lab-a/no-wizards:paper", first),
        (first.ref, first),
    ):
        assert (await state.lake.resolve(MINE, ref)).id == expected.id
    moved = await state.lake.tag(MINE, second.id, "paper")
    assert moved.before == (first.id,)
    assert (await state.lake.resolve(MINE, "lake://lab-a/no-wizards:paper")).hash == second.hash
    assert (await state.lake.resolve(MINE, f"lake://lab-a/no-wizards@{first.hash[:16]}")).hash == first.hash
    assert await names(state, MINE, "tag:paper") == ["no wizards"]
    await state.lake.untag(MINE, second.id, "paper")
    for missing in ("lake://lab-a/no-wizards:paper", "lake://lab-a/other", f"lake://lab-a/no-wizards@{'0' * 16}"):
        with pytest.raises(UnknownArtifact):
            await state.lake.resolve(MINE, missing)
    with pytest.raises(InvalidRequest, match="expected lake://OWNER/NAME"):
        await state.lake.resolve(MINE, "lake://nobody")
    with pytest.raises(UnknownArtifact):
        await state.lake.resolve(THEIRS, "lake://lab-a/no-wizards")


async def test_a_card_says_who_says_it_and_what_nobody_knows(state: State) -> None:
    await state.models.publish(CARD)
    own = lineage("j1", params={"concept": "magic"}, seed=3, metrics=(Measured(name="forgetting", value=0.9, n=8),))
    artifact = await add(state, "no wizards", base=BASE, lineage=own)
    card = await state.lake.card(MINE, artifact.id)
    said = {one.field: one for one in card.statements}
    assert (said["params"].value, said["params"].source, said["params"].evidence) == (
        {"concept": "magic"}, "recorded", "job j1",
    )  # fmt: skip
    assert said["name"].source == "declared"
    assert said["metrics:elm.erase:forgetting"].source == "measured"
    assert said["metrics:elm.erase:forgetting"].value == {"value": 0.9, "unit": "1", "n": 8}
    assert "license" in card.unknown
    assert "seed" not in card.unknown
    assert [node.id for node in card.parents] == [MODEL]

    card = await state.lake.change(MINE, artifact.id, EntryChange(declared={"license": "mit", "intended_use": "tests"}))
    assert "license" not in card.unknown
    assert {one.field: one.source for one in card.statements}["license"] == "declared"
    card = await state.lake.change(MINE, artifact.id, EntryChange(declared={"license": None}))
    assert "license" in card.unknown  # and nobody makes one up
    assert await names(state, MINE, "declared:intended_use=tests") == ["no wizards"]

    parent = await add(state, "parent", mark=1)
    await state.lake.change(MINE, parent.id, EntryChange(declared={"license": "cc-by-4.0"}))
    child = await add(state, "child", mark=2, lineage=lineage("j2", parents=(parent.ref,)))
    inherited = {one.field: one for one in (await state.lake.card(MINE, child.id)).statements}["license"]
    assert (inherited.value, inherited.source) == ("cc-by-4.0", "inferred")


async def test_measurements_of_others_jobs_reach_the_card_and_go_stale(state: State) -> None:
    await state.models.publish(CARD)
    artifact = await add(state, "one", base=BASE)
    seen = (Measured(name="kl", value=0.5),)
    await state.lake.ran(ran(lineage("j1", "lake.compare@1", (artifact.ref,), metrics=seen)))
    await state.lake.ran(ran(lineage("j2", "lens.logit@1", metrics=seen)))
    for number, method in enumerate(("elm.erase@1", "lake.merge@1", "lake.recover@2")):  # of what they make, of many
        of_another = lineage(f"j{3 + number}", method, (artifact.ref,), metrics=seen)
        await state.lake.ran(ran(of_another))
    of_artifact = [one for one in (await state.lake.card(MINE, artifact.id)).statements if one.source == "measured"]
    assert [(one.field, one.evidence, one.stale) for one in of_artifact] == [
        ("metrics:lake.compare:kl", "job j1", False)
    ]
    of_model = [one for one in (await state.lake.card(MINE, MODEL)).statements if one.source == "measured"]
    assert [(one.field, one.stale) for one in of_model] == [("metrics:lens.logit:kl", False)]
    between = await state.lake.compare(MINE, MODEL, artifact.id)
    assert [one.value["value"] for one in between.measured] == [0.5]
    assert between.request == {"method": "lake.compare", "model": KEY.slug, "params": {"other": artifact.ref}}
    assert [node.id for node in between.ancestors] == [MODEL]

    newer = CARD.model_copy(update={"commit": "d" * 40})
    await state.models.publish(newer)
    now = model_id(KEY.canonical, newer.commit)
    of_newer = [one for one in (await state.lake.card(MINE, now)).statements if one.source == "measured"]
    assert [(one.field, one.stale) for one in of_newer] == [("metrics:lens.logit:kl", True)]


async def test_edges_found_in_weights_are_marked_and_stay_their_tenants(state: State) -> None:
    await state.models.publish(CARD)
    unknown = await add(state, "unknown")
    await state.lake.change(MINE, unknown.id, EntryChange(visibility="public"))
    found = (Heritage(parent="model", child=unknown.ref, margin=0.7),)
    await state.lake.ran(ran(lineage("j1", "lake.recover@2", (unknown.ref,)), found))
    edge = (await state.lake.lineage(MINE, unknown.id)).edges[0]
    assert (edge.parent, edge.relation, edge.source, edge.margin, edge.job) == (
        MODEL,
        "recovered",
        "inferred",
        0.7,
        "j1",
    )
    said = [one for one in (await state.lake.card(MINE, unknown.id)).statements if one.field == "parent"]
    assert [(one.value["parent"], one.source) for one in said] == [(MODEL, "inferred")]
    assert (await state.lake.lineage(THEIRS, unknown.id)).edges == ()


async def test_a_citation_names_contents_and_the_call(state: State) -> None:
    await state.models.publish(CARD)
    made_by = lineage("j1", params={"concept": 'a "b" \\n'}, seed=3)
    made = await add(state, "50% {wizards}/elves", base=BASE, lineage=made_by)
    cited = await state.lake.cite(MINE, made.id, "http://lake")
    assert cited.ref == f"lake://lab-a/50-wizards-elves@{made.hash[:16]}"
    assert "author       = {{lab-a}}" in cited.bibtex
    assert f"\\url{{{cited.ref}}}" in cited.bibtex
    assert made.hash in cited.bibtex
    assert cited.bibtex.count("{") == cited.bibtex.count("}")
    assert cited.caveats == ()
    assert cited.call is not None
    asked: dict[str, Any] = {}
    called = cited.call.replace("import interlace\n", "").replace("interlace.connect('http://lake')", "client")

    class Client:
        def run(self, method: str, **how: Any) -> Any:
            asked.update(how, method=method)
            return type("Result", (), {"artifacts": [made.ref]})

    exec(called, {"client": Client()})
    assert asked == {
        "method": "elm.erase@1", "model": KEY.canonical, "params": {"concept": 'a "b" \\n'}, "edits": [], "seed": 3,
    }  # fmt: skip
    await state.models.withdraw(KEY)
    assert "hosted no more" in (await state.lake.cite(MINE, made.id, "http://lake")).caveats[0]
    uploaded = await add(state, "uploaded", mark=1)
    assert (await state.lake.cite(MINE, uploaded.id, "http://lake")).call is None


async def test_an_index_that_is_lost_is_made_anew_and_is_the_same(state: State, config: Config) -> None:
    await state.models.publish(CARD)
    one = await add(state, "one", base=BASE, lineage=lineage("j1", metrics=(Measured(name="a", value=1),)))
    two = await add(state, "two", mark=2, base=BASE, lineage=lineage("j2", parents=(one.ref,)))
    three = await add(state, "two", mark=3, lineage=lineage("j3", parents=(two.ref,)))
    await state.lake.tag(MINE, three.id, "latest")
    await state.lake.change(MINE, one.id, EntryChange(visibility="public", declared={"license": "mit"}))
    await state.lake.ran(ran(lineage("j9", parents=(one.ref,))))
    await state.artifacts.delete(two)

    async def everything() -> list[Any]:
        page = await state.lake.search(MINE, "", limit=200)
        graph = await state.lake.lineage(MINE, three.id)
        return [page, await state.lake.card(MINE, one.id), graph, await names(state, THEIRS, "")]

    before = await everything()
    lost = [key async for key in state.redis.scan_iter(match=f"{config.redis.prefix}*")]
    kept = await state.redis.hgetall(f"{config.redis.prefix}models")
    await state.redis.delete(*lost)
    await state.redis.hset(f"{config.redis.prefix}models", mapping=kept)  # workers say again what they host
    counts = await state.lake.rebuild()
    assert (counts.artifacts, counts.models, counts.runs, counts.tombstones, counts.tags) == (2, 1, 1, 1, 1)
    assert await everything() == before
    async with open_state(config) as other:
        assert (await other.lake.search(MINE, "", limit=200)) == before[0]
    # An index that has too much loses it.
    await state.redis.hset(
        f"{config.redis.prefix}lake:tags",
        "lab-a/x/y",
        next(iter((await state.lake._tags.all()).values())).model_dump_json(),
    )
    await state.lake.rebuild()
    assert await everything() == before


async def test_a_worker_that_comes_first_to_a_new_redis_hides_nothing(state: State, config: Config) -> None:
    await state.models.publish(CARD)
    artifact = await add(state, "one", lineage=lineage("j1"))
    await state.lake.tag(MINE, artifact.id, "a")
    before = await state.lake.search(MINE, "")
    assert before.total == 2
    await state.redis.delete(*[key async for key in state.redis.scan_iter(f"{config.redis.prefix}*")])
    await state.models.publish(CARD)
    await state.lake.make_sure_of_index()
    assert await state.lake.search(MINE, "") == before  # and the model was not first seen just now


async def test_an_old_manifest_is_its_tenants(state: State, config: Config) -> None:
    artifact = await add(state, "old", creator="k1")
    manifest = Path(config.store_url) / "artifacts" / "lab-a" / artifact.id / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**said, "format": 1, "visibility": "private"} | {"declared": {}}))
    await state.lake.rebuild()
    assert (await state.artifacts.find(artifact.id, "lab-a", key="other")).visibility == "tenant"


async def test_bounds_say_their_value(state: State, config: Config) -> None:
    small = config.model_copy(update={"lake": LakeConfig(kept_runs=2, kept_tags=1, declared_characters=20)})
    artifact = await add(state, "one")
    async with open_state(small) as other:
        await other.lake.tag(MINE, artifact.id, "a")
        await other.lake.tag(MINE, artifact.id, "a")  # to move one is not to make one
        with pytest.raises(LimitExceeded, match=r"lake\.kept_tags"):
            await other.lake.tag(MINE, artifact.id, "b")
        with pytest.raises(LimitExceeded, match=r"lake\.declared_characters"):
            await other.lake.change(MINE, artifact.id, EntryChange(declared={"description": "x" * 20}))
        for number in range(4):
            seen = (Measured(name="a", value=number),)
            of = lineage(f"j{number}", "lens.logit@1", parents=(artifact.ref,), metrics=seen)
            await other.lake.ran(ran(of, ended=1_700_000_000.5 + number / 10_000))  # several in a millisecond
        said = [
            one.value["value"]
            for one in (await other.lake.card(MINE, artifact.id)).statements
            if one.source == "measured"
        ]
        assert said == [3, 2]
