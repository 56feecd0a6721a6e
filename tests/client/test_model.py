"""Model keys are parsed as data: one canonical form, nothing imported, nothing accepted that is not on the list."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.protocol.errors import InvalidModelKey
from interlace.protocol.model import ModelKey

STOCK = "nnsight.modeling.transformers.TransformersModel"


def key(**fields: object) -> str:
    return f"{STOCK}:{json.dumps(fields)}"


def test_stock_spelling() -> None:
    parsed = ModelKey.parse(key(repo_id="openai-community/gpt2", revision=None, task="text-generation"))
    assert parsed == ModelKey(repo_id="openai-community/gpt2", revision="main", task="text-generation")


@pytest.mark.parametrize(
    "spelling",
    [
        key(repo_id="a/b", revision=None, task="text-generation"),
        key(revision="main", task="text-generation", repo_id="a/b"),
        key(repo_id="a/b"),
        key(repo_id="a/b", trust_remote_code=False),
        'nnsight.modeling.language.LanguageModel:{"repo_id": "a/b"}',
        STOCK + ':  {"repo_id":"a/b"}',
    ],
)
def test_spellings_of_one_model_are_equal(spelling: str) -> None:
    parsed = ModelKey.parse(spelling)
    assert parsed == ModelKey(repo_id="a/b")
    assert parsed.slug == ModelKey(repo_id="a/b").slug
    assert ModelKey.parse(parsed.canonical) == parsed


def test_two_names_of_a_task_are_one() -> None:
    hosted = ModelKey(repo_id="a/b", task="ner")
    assert hosted == ModelKey.parse(key(repo_id="a/b", task="token-classification"))
    assert '"task": "token-classification"' in hosted.canonical


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ("os.system:{}", "must be one of"),
        ("nnsight.modeling.transformers.TransformersModel", "must be one of"),
        ('subprocess.Popen:{"repo_id": "a/b"}', "must be one of"),
        (STOCK + ":", "JSON object"),
        (STOCK + ":[1]", "not in a list"),
        (STOCK + ":" + "[" * 900, "JSON object"),
        (key(), "repo_id"),
        (key(repo_id=7), "repo_id"),
        (key(repo_id="../../etc/passwd"), "repo_id"),
        (key(repo_id="a/.."), "repo_id"),
        (key(repo_id="a/b/c"), "repo_id"),
        (key(repo_id="a/b\n"), "repo_id"),
        (key(repo_id="a/b", revision="../main"), "revision"),
        (key(repo_id="a/b", revision=1), "revision"),
        (key(repo_id="a/b", task="Text Generation"), "task"),
        (key(repo_id="a/b", trust_remote_code="yes"), "trust_remote_code"),
        (key(repo_id="a/b", device_map="auto"), "device_map"),
        (key(repo_id="a" * 2000), "longer"),
    ],
)
def test_refusals_say_what_is_wrong(spelling: str, says: str) -> None:
    with pytest.raises(InvalidModelKey, match=says):
        ModelKey.parse(spelling)


@given(st.text(max_size=200) | st.text(max_size=200).map(lambda text: f"{STOCK}:{text}"))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parsed = ModelKey.parse(text)
    except InvalidModelKey:
        return
    assert ModelKey.parse(parsed.canonical) == parsed


@given(
    repo=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}/[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True),
    task=st.sampled_from(["text-generation", "fill-mask"]),
    trust=st.booleans(),
)
def test_canonical_form_round_trips(repo: str, task: str, trust: bool) -> None:
    parsed = ModelKey.parse(key(repo_id=repo, task=task, trust_remote_code=trust))
    assert ModelKey.parse(parsed.canonical) == parsed
    assert (parsed.repo_id, parsed.task, parsed.trust_remote_code) == (repo, task, trust)


def test_slugs_tell_models_apart() -> None:
    keys = [
        ModelKey(repo_id="a/b"),
        ModelKey(repo_id="a-b"),
        ModelKey(repo_id="A/b"),
        ModelKey(repo_id="a/b", revision="v2"),
        ModelKey(repo_id="a/b", task="fill-mask"),
        ModelKey(repo_id="a/b", trust_remote_code=True),
    ]
    assert len({one.slug for one in keys}) == len(keys)
    assert all(set(one.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for one in keys)
