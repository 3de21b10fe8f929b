"""Batches of the example service: who shares one, who leaves it, and a model that fails."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from examples.service.champion import Champion, Identity
from examples.service.engine import Engine, Job
from sparsemm.datasets.synthetic import questions
from tests.examples.services import READ, RECORDS, direct, form, parse, png, raw, until
from tests.families import made


def test_requests_that_wait_together_are_one_batch(service, gate, tiny, folder):
    asked = [(record.image, question) for record in RECORDS for question in (READ, questions(record)[0].prompt)]
    with ThreadPoolExecutor(len(asked)) as pool:
        first = pool.submit(service.client.post, "/answer", **form(asked[0][1], png(asked[0][0])))
        until(lambda: gate.batches == [1])
        rest = [pool.submit(service.client.post, "/answer", **form(q, png(image))) for image, q in asked[1:]]
        until(lambda: len(service.state.engine._queue) == len(rest))
        gate.let_all()
        texts = [reply.result().json()["text"] for reply in [first, *rest]]
    assert texts == [direct(tiny, folder, image, question)[0] for image, question in asked]
    assert set(gate.batches) == {1, len(rest)}


def test_one_bad_request_does_not_take_its_batch_with_it(service, gate, tiny, folder):
    thin = png(Image.new("RGB", (1, 300)))  # the processor refuses this shape
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(service.client.post, "/answer", **form())
        until(lambda: gate.batches == [1])
        bad = pool.submit(service.client.post, "/answer", **form(READ, thin))
        good = pool.submit(service.client.post, "/answer", **form())
        until(lambda: len(service.state.engine._queue) == 2)
        gate.let_all()
    assert bad.result().status_code == 422 and "aspect ratio" in bad.result().json()["detail"]
    expected = direct(tiny, folder, RECORDS[0].image, READ)[0]
    assert first.result().json()["text"] == good.result().json()["text"] == expected
    events = parse(service.client.post("/stream", **form(READ, thin)).text)
    assert [name for name, _ in events] == ["error"]


def test_a_stream_that_is_left_stops_the_work(service, gate):
    with service.client.stream("POST", "/stream", **form()) as reply:
        gate.let(3)
        lines = reply.iter_lines()  # dropping it would end the stream
        next(lines)
        until(lambda: len(gate.batches) == 4)
    until(lambda: service.state.in_flight == 0)
    gate.let_all()
    until(lambda: not service.state.engine._running)
    assert len(gate.batches) == 4  # three that were let through, and the one that waited


def test_an_answer_no_one_waits_for_stops_the_work(service, gate):
    with raw(service):
        until(lambda: gate.batches == [1])
    until(lambda: service.state.in_flight == 0)
    gate.let_all()
    until(lambda: not service.state.engine._running)
    assert len(gate.batches) == 1


def test_one_that_leaves_while_it_waits_is_never_begun(service, gate):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.client.post, "/answer", **form())
        until(lambda: gate.batches == [1])
        with raw(service):
            until(lambda: len(service.state.engine._queue) == 1)
        until(lambda: service.state.in_flight == 1)
        gate.let_all()
        assert first.result().status_code == 200
    assert set(gate.batches) == {1}
    steps = len(gate.batches)
    assert service.client.post("/answer", **form()).status_code == 200
    assert len(gate.batches) == 2 * steps


def test_a_failure_of_the_model_is_told_and_survived(service, caplog):
    def fail(*_):
        raise RuntimeError("out of order")

    hook = service.state.engine.model.register_forward_pre_hook(fail)
    try:
        assert service.client.post("/answer", **form()).status_code == 500
        events = parse(service.client.post("/stream", **form()).text)
        assert events == [("error", {"detail": "the model failed"})]
    finally:
        hook.remove()
    assert "out of order" in caplog.text
    assert service.client.post("/answer", **form()).status_code == 200


def test_a_model_whose_first_layer_slides_is_served():
    model, processor = made("gemma3")
    champion = Champion(np.ones((3, 2)), Identity("ones", None, "0" * 64), offline=False)

    async def ask():
        job = Job(Image.new("RGB", (56, 56), "red"), "What colour is it?", champion, 5)
        engine.submit(job)
        return await job.answer()

    engine = Engine(model, processor, 8, 1, window=4, storage="int8")
    try:
        answer = asyncio.run(ask())
    finally:
        engine.close()
    text = model.config.text_config
    assert answer.kept_slots == 8 * text.num_key_value_heads < answer.prompt_slots  # one layer has full attention
    assert answer.kept_bytes == answer.kept_slots * 2 * (text.head_dim + 4)
