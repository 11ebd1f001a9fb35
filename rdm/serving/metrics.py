"""Numbers of a running server in Prometheus' format, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters, gauges and histograms, named `rdm_serve_...`."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        # Counts.
        self.requests = Counter(
            "rdm_serve_requests", "requests", ["route", "status"], registry=registry
        )
        self.rejected = Counter("rdm_serve_rejected", "refusals", ["code"], registry=registry)
        self.jobs = Counter("rdm_serve_jobs", "jobs that ended", ["state"], registry=registry)
        self.images = Counter("rdm_serve_images", "pictures drawn", registry=registry)
        self.restarts = Counter(
            "rdm_serve_drawer_restarts", "drawers started again", registry=registry
        )

        # Times.
        self.request_seconds = Histogram(
            "rdm_serve_request_seconds", "of routes", ["route"], buckets=_SECONDS, registry=registry
        )
        self.lookup_seconds = Histogram(
            "rdm_serve_lookup_seconds", "of look-ups", buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "rdm_serve_queue_seconds",
            "from a job to its first step",
            buckets=_SECONDS,
            registry=registry,
        )
        self.draw_seconds = Histogram(
            "rdm_serve_draw_seconds", "of batches", buckets=_SECONDS, registry=registry
        )

        # What is the case now.
        self.queue_depth = Gauge("rdm_serve_queue_depth", "pictures that wait", registry=registry)
        self.drawers_ready = Gauge("rdm_serve_drawers_ready", "drawers", registry=registry)
        self.database_version = Gauge(
            "rdm_serve_database_version", "the version served", ["name"], registry=registry
        )
        self.resident_bytes = Gauge(
            "rdm_serve_resident_bytes", "memory", ["process"], registry=registry
        )

    def page(self) -> bytes:
        """Return everything as text."""
        return generate_latest(self._registry)
