"""`manage.py reference`: the pages of docs/ that are written by the code, so that they say what it does."""

from django.core.management.base import BaseCommand

from ticketing import metrics, reference

SETTINGS = """# Settings

All of them are environment variables, read once at the start. An empty one is as good as none. What is unsafe is
refused at the start with one line and exit status 78. What operators change while it runs (platforms, routing, scores,
model, API keys) is in the database: see `PATCH /api/v1/config/…` and the console.

{table}
This page is written by `manage.py reference settings > docs/reference/settings.md`.
"""
METRICS = """# Metrics

`GET /metrics`, in Prometheus' text format, with a credential of the role viewer:

```yaml
scrape_configs:
  - job_name: ticketing
    scrape_interval: 15s
    authorization: {{credentials_file: /etc/prometheus/ticketing-key}}
    static_configs: [{{targets: ["tickets.example.com"]}}]
    scheme: https
```

Any web process answers for all processes, so scrape one address, not each process. Gauges are asked of the database at
the moment of the scrape; counters and the histogram are added to it every 5 seconds, and a process that is killed takes
its last seconds with it. While the database is down the answer is 503, which Prometheus shows as `up` 0.

{table}
A dashboard is in `docker/grafana-dashboard.json`, alert rules are in `docker/alerts.yaml`; what to do about each is in
[operate.md](operate.md#alerts).

This page is written by `manage.py reference metrics > docs/metrics.md`.
"""


class Command(BaseCommand):
    help = "Prints a page of the reference."
    requires_system_checks = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("page", choices=("settings", "metrics"))

    def handle(self, *args, page: str, **options) -> None:
        self.stdout.write(render(page), ending="")


def render(page: str) -> str:
    return SETTINGS.format(table=reference.table()) if page == "settings" else METRICS.format(table=metrics.table())
