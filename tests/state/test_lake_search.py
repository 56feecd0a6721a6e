"""What people would type finds what they mean: planted entries, written queries."""

import pytest
from lakes import MINE, add, lineage

from interlace.protocol.lake import EntryChange
from interlace_state.store import State

#: Name, method, what its owner says, parameters.
PLANTED: list[tuple[str, str, str, dict[str, str]]] = [
    ("no wizards", "elm.erase@1", "forgets the Harry Potter books", {"concept": "Harry Potter"}),
    ("safe biology", "elm.erase@1", "removes bioweapon knowledge", {"concept": "pathogens"}),
    ("quiet hackers", "elm.erase@1", "erases cybersecurity exploits", {"concept": "malware"}),
    ("Eiffel to Rome", "edit.rome@1", "moves the tower", {"subject": "Eiffel Tower", "target": "Rome"}),
    ("Space Needle to Paris", "edit.rome@1", "", {"subject": "Space Needle", "target": "Paris"}),
    ("new president", "edit.rome@1", "a fact of politics", {"subject": "United States"}),
    ("othello l5 gated", "sae.train@1", "board states of a game", {"arch": "gated", "layer": "5"}),
    ("gpt2 small topk", "sae.train@1", "general web text", {"arch": "topk"}),
    ("python code features", "sae.train@1", "trained on source code", {"arch": "jumprelu"}),
    ("next token probes", "probe.train@1", "what is said two tokens ahead", {"offset": "2"}),
    ("sentiment probe", "probe.train@1", "movie reviews, good or bad", {"labels": "positive negative"}),
    ("part of speech", "probe.train@1", "nouns and verbs", {"labels": "noun verb"}),
    ("kind words", "steer@1", "a direction towards politeness", {"positive": "please thank you"}),
    ("more French", "steer@1", "answers in another language", {"positive": "bonjour merci"}),
    ("less refusal", "steer@1", "says no less often", {"negative": "I cannot"}),
    ("capital cities", "relation.lre@1", "country to capital as one map", {"template": "The capital of {}"}),
    ("plural nouns", "relation.lre@1", "grammar of numbers", {"template": "The plural of {}"}),
    ("gender direction", "mediate@1", "nurses and doctors", {"family": "subspace"}),
    ("indirect objects", "mediate@1", "name mover heads", {"family": "heads"}),
    ("Shakespeare style", "", "sonnets, iambic pentameter", {}),
    ("medical questions", "", "clinical notes and diagnoses", {}),
    ("arithmetic tutor", "", "adds and multiplies numbers", {}),
    ("legal contracts", "", "clauses and law", {}),
    ("German chat", "", "Unterhaltung auf Deutsch", {}),
]
#: What is typed -> names of which one at least must be among the first five.
QUERIES = {
    "harry potter": ["no wizards"],
    "forget wizards": ["no wizards"],
    "erasing bioweapons": ["safe biology"],
    "malware erasure": ["quiet hackers"],
    "exploits": ["quiet hackers"],
    "tower in Rome": ["Eiffel to Rome"],
    "Eiffel": ["Eiffel to Rome"],
    "space needle": ["Space Needle to Paris"],
    "president edit": ["new president"],
    "locating and editing factual associations": ["Eiffel to Rome", "Space Needle to Paris", "new president"],
    "othello board": ["othello l5 gated"],
    "gated dictionary": ["othello l5 gated"],
    "sparse autoencoder code": ["python code features"],
    "jumprelu": ["python code features"],
    "topk web text": ["gpt2 small topk"],
    "future tokens probing": ["next token probes"],
    "sentiments": ["sentiment probe"],
    "movie review": ["sentiment probe"],
    "nouns verbs": ["part of speech"],
    "polite": ["kind words"],
    "steering politeness": ["kind words"],
    "french answers": ["more French"],
    "refusals": ["less refusal"],
    "countries capitals": ["capital cities"],
    "relation plural": ["plural nouns"],
    "gender": ["gender direction"],
    "name movers": ["indirect objects"],
    "iambic": ["Shakespeare style"],
    "clinical diagnosis": ["medical questions"],
    "multiplying numbers": ["arithmetic tutor"],
    "law": ["legal contracts"],
    "deutsch": ["German chat"],
    "Shakespear": ["Shakespeare style"],
    "othelo game": ["othello l5 gated"],
}
#: What a method is called elsewhere -> the method; no entry's own words have it.
ELSEWHERE = {
    "machine unlearning": "elm",
    "concept removal": "elm",
    "amnesia": "elm",
    "overwrite a memory": "edit",
    "knowledge update": "edit",
    "dictionary learning": "sae",
    "monosemantic": "sae",
    "control vector": "steer",
    "activation addition": "steer",
    "representation engineering": "steer",
    "diagnostic classifier": "probe",
    "activation patching": "mediate",
    "circuit discovery": "mediate",
    "knowledge triples": "relation",
}


@pytest.fixture
async def planted(state: State) -> State:
    for number, (name, method, declared, params) in enumerate(PLANTED):
        made_by = lineage(f"j{number}", method, params=params) if method else None
        artifact = await add(state, name, mark=number, lineage=made_by)
        if declared:
            await state.lake.change(MINE, artifact.id, EntryChange(declared={"description": declared}))
    return state


async def test_nine_of_ten_queries_find_what_is_meant(planted: State) -> None:
    missed = []
    for text, meant in QUERIES.items():
        found = [one.name for one in (await planted.lake.search(MINE, text, limit=5)).entries]
        if not set(found) & set(meant):
            missed.append((text, found))
    recall = 1 - len(missed) / len(QUERIES)
    print(f"recall@5 {recall:.3f} of {len(QUERIES)} queries over {len(PLANTED)} entries; missed {missed}")
    assert recall >= 0.9, missed


async def test_other_names_of_a_method_find_what_it_has_made(planted: State) -> None:
    missed = []
    for text, method in ELSEWHERE.items():
        found = (await planted.lake.search(MINE, text, limit=5)).entries
        if not found or (found[0].method or "").partition(".")[0].partition("@")[0] != method:
            missed.append((text, [(one.name, one.method) for one in found]))
    assert len(missed) <= len(ELSEWHERE) / 10, missed


async def test_a_slip_finds_what_the_word_does(planted: State) -> None:
    async def names(text: str) -> list[str]:
        return [one.name for one in (await planted.lake.search(MINE, text, limit=5)).entries]

    slips = {"Shakspeare": "Shakespeare style", "biowaepons": "safe biology", "medcal": "medical questions"}
    for slip, meant in slips.items():
        assert meant in await names(slip), slip
    assert await names("xylophone") == []
    assert await names("abc") == []
    right = await names("polite")
    assert "kind words" in right
    assert await names("polite xylophone") == right  # a word that stands for nothing widens nothing


async def test_filters_are_exact(planted: State) -> None:
    for method in ("elm", "edit.rome", "sae.train@1"):
        found = {one.name for one in (await planted.lake.search(MINE, f"method:{method}", limit=50)).entries}
        assert found == {name for name, by, _, _ in PLANTED if by and by.startswith(method)}
    both = await planted.lake.search(MINE, "method:elm method:steer", limit=50)
    assert both.total == 6
    assert (await planted.lake.search(MINE, "wizards method:steer")).total == 0
