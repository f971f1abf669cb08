"""``python -m phi3_serve.monitoring DIRECTORY`` writes what an operator gives to Prometheus and to Grafana.

DIRECTORY gets ``alerts.yaml`` and ``grafana-dashboard.json``.
"""

import sys
from pathlib import Path

from phi3_serve.monitoring.alerts import rules_file
from phi3_serve.monitoring.dashboard import dashboard_file

FILES = {"alerts.yaml": rules_file, "grafana-dashboard.json": dashboard_file}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m phi3_serve.monitoring DIRECTORY")
    for name, content in FILES.items():
        (Path(sys.argv[1]) / name).write_text(content())
