"""docs/grafana.json against a server's /metrics, and docs/metrics.md against both: no query of a name that is not there, no name without a definition."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
BOARD = json.loads((DOCS / "grafana.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
METRIC = re.compile(r"\b(?:sarathi_jax|http|process)_\w+")
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def metrics_text(server: Any) -> str:
    server.complete("the same long beginning " * 8, max_tokens=8, ignore_eos=True)
    server.complete("a", max_tokens=2, n=2, ignore_eos=True)
    return server.get("/metrics").text


def names_and_labels(text: str) -> dict[str, set[str]]:
    """Of each sample, its name and its labels' names."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    return found


def test_every_query_is_of_what_is_there(metrics_text: str) -> None:
    known = names_and_labels(metrics_text)
    assert len(EXPRESSIONS) > 40
    for expression in EXPRESSIONS:
        names = METRIC.findall(expression)
        assert names, expression
        assert [name for name in names if name not in known] == [], expression
        labels = {label for by in re.findall(r"by \(([\w, ]+)\)", expression) for label in by.split(", ")}
        assert labels <= known[names[0]], expression


def test_queries_are_well_formed() -> None:
    for expression in EXPRESSIONS:
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        # A counter is looked at as a rate, a bucket as a quantile.
        for name in METRIC.findall(expression):
            if name.endswith(("_total", "_bucket", "_sum", "_count")):
                assert re.search(rf"(rate|increase)\({name}{{instance=~\"\$instance\"}}\[", expression), expression
            else:
                assert f'{name}{{instance=~"$instance"' in expression, expression
        assert ("_bucket{" in expression) == ("histogram_quantile" in expression), expression


def test_it_can_be_imported_anywhere() -> None:
    assert {variable["name"]: variable["type"] for variable in BOARD["templating"]["list"]} == {
        "datasource": "datasource",
        "instance": "query",
    }
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    assert "id" not in BOARD
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_cover_each_other() -> None:
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in BOARD["panels"])
    ]
    assert all(not one & other for one, other in combinations(cells, 2))
    assert all(x < 24 for cell in cells for x, _ in cell)


def test_every_name_has_a_definition(metrics_text: str) -> None:
    text = (DOCS / "metrics.md").read_text()
    defined = set(re.findall(r"^\| `([a-z0-9_]+)(?:\{\w+\})?` \|", text.split("## GET /metrics")[1], re.MULTILINE))
    families = set(re.findall(r"^# TYPE (?:sarathi_jax_)?(\w+)", metrics_text, re.MULTILINE))
    families = {name for name in families if not re.match(r"(engine_)?process_", name)}
    assert defined == families
