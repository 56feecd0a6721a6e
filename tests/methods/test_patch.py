"""`patch.prompts` on a model whose facts are known: what each state carries, unlike lengths, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from small_models import FACTS_GPT, facts

from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.patch.run import aligned
from interlace.methods.patch.spec import PatchResult
from interlace.protocol.errors import InvalidRequest

FRANCE, CHINA = "France is located on the continent of", "China is located on the continent of"


def patched(folder: Path, **params: Any) -> PatchResult:
    report = Notebook(folder, bar=False)
    result = run(find("patch.prompts"), facts(FACTS_GPT), {"a": FRANCE, "b": CHINA} | params, report)
    assert isinstance(result, PatchResult)
    return result


def effects(result: PatchResult) -> dict[tuple[Any, ...], float]:
    return {(row[0], row[1], row[2]): float(row[4] or 0) for row in result.table("effects").rows}


def test_the_difference_is_at_the_names_first_and_at_the_last_token_then(tmp_path: Path) -> None:
    result = patched(tmp_path, batch=7)
    assert result.answers == (" Europe", " Asia")
    assert result.metric("margin", "a").value > 0 > result.metric("margin", "b").value
    found = effects(result)
    tokens = [row[3] for row in result.table("tokens").rows]
    last, top = len(tokens) - 1, 5
    for into in "ab":
        assert found[into, top, last] == pytest.approx(1)
        assert [found[into, top, at] for at in range(last)] == [pytest.approx(0)] * last
        words = [found[into, layer, at] for layer in range(top) for at in range(3, last)]
        assert max(map(abs, words)) < 0.05
    assert max(found["a", layer, at] for layer in (0, 1, 2) for at in (0, 1, 2)) > 0.3
    assert found["a", 0, last] < found["a", 3, last] < found["a", 4, last]
    assert effects(patched(tmp_path, batch=64)) == pytest.approx(found, abs=1e-4)


def test_it_is_what_a_trace_says(tmp_path: Path) -> None:
    """One patch, in nnsight's words."""
    model = facts(FACTS_GPT)
    result = patched(tmp_path, layers=[2])
    at = {row[0]: (row[1], row[2]) for row in result.table("tokens").rows}
    with model.trace(CHINA):
        states = model.transformer.h[2].output.save()
    with model.trace(FRANCE):
        model.transformer.h[2].output[:, at[1][0]] = states[:, at[1][1]]
        logits = model.lm_head.output[0, -1].save()
    europe, asia = (model.tokenizer(word).input_ids[0] for word in result.answers)
    margin = next(row[3] for row in result.table("effects").rows if row[:3] == ("a", 2, 1))
    assert float((logits[europe] - logits[asia]).detach()) == pytest.approx(margin, rel=1e-4)


def test_unlike_lengths_are_put_side_by_side_from_both_ends(tmp_path: Path) -> None:
    assert aligned([1, 2, 3], [1, 4, 3]) == [(0, 0), (1, 1), (2, 2)]
    assert aligned([1, 2, 9], [1, 4, 5, 9]) == [(0, 0), (1, 2), (2, 3)]
    assert aligned([1, 2], [1, 2, 3]) == [(0, 0), (1, 1)]
    (warning,) = patched(tmp_path, layers=[0]).warnings
    assert warning.startswith("a has 9 tokens and b 10")
    assert "'C' of b has nothing beside it" in warning


def test_its_picture_and_what_it_refuses(tmp_path: Path) -> None:
    figure = patched(tmp_path, layers=[0, 5]).plot()
    assert [axis.get_title() for axis in figure.axes[:2]] == ["states of b in a", "states of a in b"]
    for params, sentence in (
        ({"b": FRANCE}, "the same tokens: nothing is different"),
        ({"answer_b": "Europe"}, "Both answers begin with the token ' Europe'"),
        ({"layers": [9]}, "0 to 5"),
        ({"site": "mixer_out"}, "has no site 'mixer_out'"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            patched(tmp_path, **params)
