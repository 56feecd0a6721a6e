"""The dashboard, the alert rules and the page on them name metrics and labels that a real Interlace shows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import observed
import pytest
import tiny
import yaml
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from observed import Samples

ROOT = Path(__file__).parents[2]
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"(\w+)\{([^{}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_FUNCTIONS = {"and", "sum", "max", "min", "avg", "rate", "increase", "histogram_quantile", "label_values"}
#: What Prometheus adds: whether a target answered, and which it was.
_ITS_METRICS, _ITS_LABELS = {"up"}, {"job", "instance"}
#: Of these labels each value is known in advance and shown from the start.
_CLOSED = {"outcome", "reason", "state", "step", "way"}


def _dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    return loaded


def _alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _expressions() -> Iterator[tuple[str, str]]:
    dashboard = _dashboard()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["definition"].replace(", model)", ")")
    for rule in _alerts():
        yield rule["alert"], rule["expr"]


EXPRESSIONS = list(_expressions())


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression asks for."""
    bare = _MATCHERS.sub(r"\1", _RANGE.sub("", _GROUPING.sub("", _STRING.sub("", expression))))
    return set(re.findall(r"[A-Za-z_]\w*", bare)) - _FUNCTIONS


@pytest.fixture(scope="module")
def shown(home: Path, tiny_models: Path) -> Iterator[Samples]:
    """All samples of a server on which a job has completed and one has failed."""
    huggingface._ID_CACHE[tiny.GPT2] = tiny.GPT2
    with observed.interlace(home) as server:
        client = TransformersModel(tiny.GPT2, task="text-generation")
        observed.reads(client)
        observed.raises(client)
        yield observed.settled(server, 2)


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_what_is_asked_for_is_shown(where: str, expression: str, shown: Samples) -> None:
    names = names_in(expression) - _ITS_METRICS
    exposed = {name for name, _ in shown}
    assert names <= exposed, names - exposed
    labels: dict[str, dict[str, set[str]]] = {}
    for name, has in shown:
        for label, value in has:
            labels.setdefault(name, {}).setdefault(label, set()).add(value)
    for name, matchers in _MATCHERS.findall(expression):
        for label, operator, value in _MATCHER.findall(matchers):
            if name in _ITS_METRICS or label in _ITS_LABELS:
                continue
            assert label in labels[name], (name, label)
            if label in _CLOSED:
                wanted = set(value.split("|")) if operator == "=~" else {value}
                assert wanted <= labels[name][label], (name, label, value)
    grouped = {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")}
    known = {label for name in names for label in labels.get(name, ())} | _ITS_LABELS
    assert grouped <= known, grouped - known


def test_legends_and_summaries_name_labels_that_are_left() -> None:
    said = [
        (target["expr"], re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for panel in _dashboard()["panels"]
        for target in panel.get("targets", [])
    ]
    said += [(rule["expr"], re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) for rule in _alerts()]
    for expression, labels in said:
        left = {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")}
        if not left and not re.search(r"\bsum\b", expression):
            left = _ITS_LABELS | {"replica"}
        assert set(labels) <= left - {"le"}, expression


def test_the_names_are_found_in_an_expression() -> None:
    """This file's own reading of PromQL."""
    assert names_in('sum by (le, model) (rate(a_bucket{b="c{d}", e=~"f"}[$__rate_interval])) / max(g) > 0.5') == {
        "a_bucket",
        "g",
    }


def test_every_metric_is_on_the_page_and_no_other(shown: Samples) -> None:
    page = (ROOT / "docs/observability.md").read_text()
    suffix = re.compile(r"_(bucket|count|sum)$")
    histograms = {suffix.sub("", name) for name, has in shown if name.endswith("_bucket")}
    families = {base if (base := suffix.sub("", name)) in histograms else name for name, _ in shown}
    ours = {name for name in families if name.startswith("interlace_")}
    assert set(re.findall(r"`(interlace_\w+)`", page)) == ours


def test_prometheus_scrapes_what_the_rules_name() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    paths = {job["job_name"]: job["metrics_path"] for job in scraped}
    assert paths == {"interlace-gateway": "/metrics", "interlace-workers": "/metrics/workers"}
    named = {name for _, expression in EXPRESSIONS for name in re.findall(r'job="([^"]+)"', expression)}
    assert named == set(paths)


def test_what_grafana_and_prometheus_mount_is_there() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observe"]
        assert services[name]["networks"] == ["outside"]
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
    [variable] = [one for one in _dashboard()["templating"]["list"] if one["type"] == "datasource"]
    sources = {panel["datasource"]["uid"] for panel in _dashboard()["panels"] if "targets" in panel}
    assert sources == {f"${{{variable['name']}}}"}
