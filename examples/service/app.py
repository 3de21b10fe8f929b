"""Runs a service that answers questions about images with a compressed cache: `python -m examples.service.app`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from examples.service.champion import Follower
from examples.service.engine import Answer, Engine, Job, Refused
from examples.service.metrics import CountRequests, Metrics
from examples.service.settings import Settings
from examples.service.upload import read_upload
from sparsemm.cache import compressed_cache
from sparsemm.errors import SparseMMError
from sparsemm.models import load_model
from sparsemm.params import Params, load_params
from sparsemm.policies import method_options

FORM = {
    "type": "object",
    "required": ["image", "question"],
    "properties": {"image": {"type": "string", "format": "binary"}, "question": {"type": "string"}},
}
NOT_IN_TIME, FAILED = "no answer in time", "the model failed"
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}


async def admit(request: Request) -> AsyncIterator[Job]:
    """Reads a request and submits its job, which is cancelled when the request ends.

    Raises:
        HTTPException: 503 at too many requests, 408 if the body does not arrive in time, or as `read_upload`.
    """
    state, settings = request.app.state, request.app.state.settings
    if state.in_flight >= settings.max_requests:
        raise HTTPException(503, "too many requests at once", headers={"Retry-After": "1", "Connection": "close"})
    state.in_flight += 1
    job = None
    try:
        try:
            async with asyncio.timeout(settings.timeout_seconds):
                image, question = await read_upload(request, settings, state.reserved)
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time", headers={"Connection": "close"}) from None
        job = Job(image, question, state.follower.current, settings.max_new_tokens)
        state.engine.submit(job)
        yield job
    finally:
        if job is not None:
            job.cancel()
        state.in_flight -= 1


Admitted = Annotated[Job, Depends(admit)]


def cache_options(method: str, params: Params) -> dict[str, Any]:
    """Returns the options of a method in params.yaml; none for "auto", because the recipe has its own.

    Raises:
        BudgetError: if the method is unknown.
    """
    if method == "auto":
        return {}
    options = params.allocate.model_dump() | {"pooling_kernel": params.evaluate.pooling_kernel}
    return {name: options[name] for name in method_options(method) if name in options}


def start(app: FastAPI) -> None:
    """Loads model and score table, and starts the threads of the service.

    Raises:
        SparseMMError: if model, score table or budget cannot be used.
    """
    settings, metrics = app.state.settings, app.state.metrics
    params = load_params(settings.params).of(settings.model)
    entry = params.model(settings.model)
    model, processor = load_model(entry)
    follower = Follower(settings.scores, model.config, settings.refresh_seconds)
    budget = settings.budget or max(params.allocate.budgets)
    options = cache_options(settings.method, params)
    compressed_cache(model, settings.method, budget, follower.current.table, **options)  # fails now, not later
    engine = Engine(model, processor, budget, settings.max_batch, settings.method, **options)
    engine.on_batch, engine.on_answer = metrics.batches.observe, metrics.answered
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    app.state.reserved = special | {token for token in [getattr(processor, "image_token", None)] if token}
    app.state.entry, app.state.follower, app.state.engine = entry, follower, engine


def create_app(settings: Settings) -> FastAPI:
    """Returns the service, which calls `start` when it is served, unless that was done."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not hasattr(app.state, "engine"):
            start(app)
        try:
            yield
        finally:
            app.state.follower.close()
            await asyncio.to_thread(app.state.engine.close)

    metrics = Metrics()
    # The pages of FastAPI fetch their scripts from other servers.
    app = FastAPI(title="SparseMM", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.metrics, app.state.in_flight = settings, metrics, 0
    app.add_middleware(CountRequests, metrics=metrics)

    @app.get("/", response_class=PlainTextResponse, include_in_schema=False)
    async def root() -> str:
        calls = [(path, *call) for path, verbs in app.openapi()["paths"].items() for call in verbs.items()]
        lines = [f"{verb.upper()} {path}: {about['description']}" for path, verb, about in calls]
        return "\n".join([*lines, "GET /openapi.json: all of this for programs"]) + "\n"

    @app.post("/answer", openapi_extra=BODY)
    async def answer(request: Request, job: Admitted) -> Answer:
        """Returns one answer as JSON; work stops if the client disconnects."""
        work, gone = asyncio.create_task(job.answer()), asyncio.create_task(_gone(request))
        await asyncio.wait({work, gone}, timeout=settings.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not work.done():
            work.cancel()
            raise HTTPException(504, NOT_IN_TIME)  # a client that has disconnected will not read it
        try:
            return work.result()
        except Refused as error:
            raise HTTPException(422, f"no prompt can be made of this: {error}") from None
        except Exception:  # the engine has logged it
            raise HTTPException(500, FAILED) from None

    @app.post("/stream", openapi_extra=BODY, response_class=StreamingResponse)
    async def stream(job: Admitted) -> StreamingResponse:
        """Sends server-sent events: one per piece of text, then `done` with the content of /answer, or `error`."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _stream(job, settings.timeout_seconds), media_type="text/event-stream", headers=headers
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        """Returns 200 while the model's thread works, else 503."""
        state = app.state
        current, checked = state.follower.current, state.follower.checked
        content = {
            "status": "ok" if state.engine.alive else "dead",
            "model": settings.model,
            "revision": state.entry.revision,
            "scores": asdict(current.identity)
            | {"offline": current.offline, "checkpoint_revision": current.table.header["revision"]},
            "checked_seconds_ago": None if checked is None else round(time.monotonic() - checked, 3),
            "check_failed": state.follower.error,
            "in_flight": state.in_flight,
        }
        return JSONResponse(content, status_code=200 if state.engine.alive else 503)

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Returns the metrics of Prometheus."""
        return Response(metrics.text(app.state), media_type=CONTENT_TYPE_LATEST)

    return app


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(job: Job, timeout: float) -> AsyncIterator[str]:
    try:
        async with asyncio.timeout(timeout):
            async for event in job.events():
                yield _event("done", asdict(event)) if isinstance(event, Answer) else _event(None, {"text": event})
    except TimeoutError:
        yield _event("error", {"detail": NOT_IN_TIME})
    except Refused as error:
        yield _event("error", {"detail": f"no prompt can be made of this: {error}"})
    except Exception:  # the engine has logged it; the status was sent before
        yield _event("error", {"detail": FAILED})


def _event(name: str | None, data: Any) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"


def main() -> None:
    """Serves until interrupted; running requests are finished first."""
    logging.basicConfig(level=logging.INFO)
    try:
        settings = Settings.from_environment(os.environ)
        app = create_app(settings)
        start(app)
    except SparseMMError as error:
        sys.exit(str(error))
    uvicorn.run(app, host=settings.host, port=settings.port, server_header=False)


if __name__ == "__main__":
    main()
