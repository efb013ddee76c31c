"""The dashboard and the alerts ask for metrics there are, in words Prometheus understands."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "adex.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
SCRAPE = ROOT / "deploy" / "prometheus" / "scrape.yaml"

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: see requirements/system.sh"
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def panels() -> list[dict[str, Any]]:
    every = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"\b(?:adex|process)_[a-z_]+", text))


def unknown(asked: set[str], there: set[str]) -> list[str]:
    known = there | {name + end for name in there for end in ("_bucket", "_sum", "_count")}
    return sorted(asked - known)


def test_every_metric_of_the_dashboard_is_there(metric_names: set[str]) -> None:
    asked = asked_for(" ".join(expressions()))
    assert len(asked) > 30
    assert not unknown(asked, metric_names)


def test_every_metric_of_the_alerts_is_there(metric_names: set[str]) -> None:
    asked = asked_for(ALERTS.read_text("utf-8"))
    assert len(asked) > 8
    assert not unknown(asked, metric_names)


def test_panels_lie_beside_each_other_and_each_has_a_title_of_its_own() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@needs_promtool
def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    # JSON is YAML.
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_prometheus_accepts_the_alerts_and_the_scrape_configuration() -> None:
    for checked in (
        promtool("check", "rules", ALERTS),
        promtool("check", "config", "--syntax-only", SCRAPE),
    ):
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_alerts_come_when_they_should_and_only_then() -> None:
    tested = promtool("test", "rules", Path(__file__).with_name("alerts_test.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
