"""Counts what the service does, in the text format of Prometheus: GET /metrics."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.service.engine import Answer

PATHS = ("/answer", "/stream", "/health", "/metrics")  # others count as one, or clients could make labels
SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one service; all names begin with sparsemm_service_."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "sparsemm_service", "registry": self.registry}
        self.requests = Counter("requests", "requests by path and status", ["path", "status"], **options)
        self.seconds = Histogram("request_seconds", "seconds of a request", ["path"], buckets=SECONDS, **options)
        self.batches = Histogram("batch_size", "requests that ran together", buckets=BATCHES, **options)
        self.tokens = Counter("tokens", "generated tokens", **options)
        self.kept = Counter("kept_slots", "slots of prompts that the cache kept", **options)
        self.prompts = Counter("prompt_slots", "slots of prompts before compression", **options)
        self.in_flight = Gauge("in_flight", "requests that wait or run", **options)
        self.waiting = Gauge("waiting", "requests that wait for the model", **options)
        self.alive = Gauge("engine_alive", "1 while the thread of the model works", **options)
        self.failed = Gauge("check_failed", "1 if the last look for a newer score table failed", **options)
        self.scores = Gauge("scores", "score table in use", ["name", "version", "digest"], **options)

    def answered(self, answer: Answer) -> None:
        """Counts a whole answer."""
        self.tokens.inc(answer.tokens)
        self.kept.inc(answer.kept_slots)
        self.prompts.inc(answer.prompt_slots)

    def text(self, state: Any) -> bytes:
        """Returns all metrics, with those of the app's state (`app.state`) as they are now."""
        self.in_flight.set(state.in_flight)
        self.waiting.set(state.engine.waiting)
        self.alive.set(state.engine.alive)
        self.failed.set(state.follower.error is not None)
        identity = state.follower.current.identity
        self.scores.clear()
        self.scores.labels(identity.name, identity.version or "", identity.digest).set(1)
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts and times requests; unlike a middleware of responses, it leaves streams alone."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        status, began = "none", time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
