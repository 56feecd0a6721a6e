"""A method's fields, for people."""

import pytest

from interlace.methods import catalogue, find
from interlace.methods.views import view
from interlace_deploy.schema import SchemaField, fields


def test_what_a_field_holds() -> None:
    told = {one.name: one.kind for one in fields(view(find("mediate")).params, within=True)}
    assert told["pairs"] == "list of objects"
    assert told["  .base"] == "text"
    assert told["effect"] == "NIE | NDE"
    assert told["temperature"] == "list of numbers"
    assert told["random_weights"] == "true or false"
    assert told["  .positions"] == "list of whole numbers or each | all"


def test_what_is_said_of_a_field() -> None:
    told = {one.name: one for one in fields(view(find("steer")).params)}
    assert told["controls"] == SchemaField(
        "controls", "whole number", is_required=False, default=3, says="Random directions of the same norm."
    )
    assert told["layer"].is_required


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_field_of_every_result_is_told(name: str) -> None:
    told = fields(view(find(name)).result)
    assert not [one.name for one in told if not one.says or one.kind == "anything"]
