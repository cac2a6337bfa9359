"""docker/alerts.yml: its figures exist, it fires when it should, and a page says what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.images import ROOT, figures

RULES = ROOT / "docker/alerts.yml"
PROMTOOL = shutil.which("promtool")

# What each alert is made of: twenty minutes of figures, one sample every ten seconds.
SERIES = {
    "FadaUnreachable": [('up{job="fada"}', "0x120")],
    "FadaNoWorker": [("fada_workers", "0x120")],
    "FadaRefusals": [('fada_errors_total{code="busy"}', "0+1x120")],
    "FadaLateFragments": [
        ('fada_live_load_bucket{le="1.0"}', "0+90x120"),
        ("fada_live_load_count", "0+100x120"),
    ],
    "FadaBrokerMemory": [
        ("fada_broker_memory_bytes", "900x120"),
        ("fada_broker_memory_limit_bytes", "1000x120"),
    ],
    "FadaRestarts": [
        *((f'process_start_time_seconds{{process="worker-a-{n}"}}', "5x9 stale") for n in range(3)),
        ('process_start_time_seconds{process="worker-a-9"}', "7x120"),
    ],
}
# The same figures of a service that is well.
QUIET = [
    ('up{job="fada"}', "1x120"),
    ("fada_workers", "2x120"),
    ('fada_errors_total{code="busy"}', "3x120"),
    ('fada_live_load_bucket{le="1.0"}', "0+100x120"),
    ("fada_live_load_count", "0+100x120"),
    ("fada_broker_memory_bytes", "900x120"),
    ("fada_broker_memory_limit_bytes", "0x120"),  # none
    ('process_start_time_seconds{process="worker-a-1"}', "5x60 99x60"),  # one restart
]


def test_alerts_ask_for_figures_that_exist() -> None:
    used = set(re.findall(r"\b(?:fada|process)_\w+", RULES.read_text()))
    assert used and used <= figures()
    config = (ROOT / "docker/prometheus.yml").read_text()
    assert "rule_files: [/etc/prometheus/alerts.yml]" in config


def test_every_alert_has_its_part_of_the_page() -> None:
    alerts = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)
    page = (ROOT / "docs/guide/alerts.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == alerts == list(SERIES)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    def case(given: list[tuple[str, str]], firing: str) -> dict[str, object]:
        return {
            "interval": "10s",
            "input_series": [{"series": name, "values": values} for name, values in given],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "12m",
                    "exp_samples": [{"labels": f'{{alertname="{firing}"}}', "value": 1}]
                    if firing
                    else [],
                }
            ],
        }

    tests = [case(given, name) for name, given in SERIES.items()] + [case(QUIET, "")]
    path = tmp_path / "cases.yml"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
