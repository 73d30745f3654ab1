"""Metrics for Prometheus. Sums over jobs come from the store, so they outlive the server."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from models.service.jobs import ENDED, StoreUnavailable

if TYPE_CHECKING:
    from models.service.service import Service

_PREFIX = "mochi_tt"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """What a service counts."""

    def __init__(self, service: Service) -> None:
        """Begin to count; every service has a registry of its own."""
        self._service = service
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{_PREFIX}_http_requests", "Answers, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{_PREFIX}_http_seconds",
            "Seconds of a request, to the end of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)  # type: ignore[arg-type]

    def describe(self) -> list[Metric]:
        """Return nothing: what there is is known at `collect`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the store and the worker say."""
        status = self._service.status
        yield GaugeMetricFamily(f"{_PREFIX}_ready", "1 if the worker takes jobs.", value=float(status.ready))
        yield CounterMetricFamily(f"{_PREFIX}_worker_restarts", "Starts after the first.", value=status.restarts)
        for name, value in status.figures.items():
            yield GaugeMetricFamily(
                f"{_PREFIX}_worker_{name}", "Of the worker's process, after its last job.", value=value
            )
        yield GaugeMetricFamily(
            f"{_PREFIX}_server_peak_bytes",
            "Peak memory of the server's process.",
            value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        try:
            counts, totals = self._service.jobs.counts(), self._service.jobs.totals()
        except StoreUnavailable:
            return
        jobs = GaugeMetricFamily(f"{_PREFIX}_jobs", "Jobs that are kept, by state.", labels=["state"])
        for state, number in counts.items():
            jobs.add_metric([state], number)
        yield jobs
        yield CounterMetricFamily(f"{_PREFIX}_submitted", "Jobs submitted.", value=totals.get("submitted", 0))
        ended = CounterMetricFamily(f"{_PREFIX}_ended", "Jobs ended, by how.", labels=["state"])
        for state in ENDED:
            ended.add_metric([state], totals.get(state, 0))
        yield ended
        for kind, about in (("seconds", "Seconds in each stage."), ("forwards", "Forwards, by what they did.")):
            family = CounterMetricFamily(
                f"{_PREFIX}_stage_{kind}" if kind == "seconds" else f"{_PREFIX}_{kind}", about, labels=["of"]
            )
            for name, value in totals.items():
                if name.startswith(f"{kind}_"):
                    family.add_metric([name.removeprefix(f"{kind}_")], value)
            yield family

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
