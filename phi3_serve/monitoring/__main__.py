"""``python -m phi3_serve.monitoring ROOT`` writes what an operator gives to Prometheus, Grafana and Kubernetes.

ROOT is the root of the repository.
"""

import sys
from pathlib import Path

from phi3_serve.monitoring.alerts import prometheus_rule_file, rules_file
from phi3_serve.monitoring.dashboard import dashboard_file

FILES = {
    "monitoring/alerts.yaml": rules_file,
    "monitoring/grafana-dashboard.json": dashboard_file,
    "k8s/components/monitoring/prometheus-rule.yaml": prometheus_rule_file,
}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m phi3_serve.monitoring ROOT")
    for name, content in FILES.items():
        (Path(sys.argv[1]) / name).write_text(content())
