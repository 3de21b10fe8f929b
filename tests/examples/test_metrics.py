"""The service's metrics: what was asked and answered, and no labels that a client could make."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from sparsemm.files import sha256_file
from tests.examples.services import form


def metrics(service):
    """Value of every sample by its name and labels."""
    reply = service.client.get("/metrics")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(reply.text) for s in family.samples]
    return {(s.name.removeprefix("sparsemm_service_"), *sorted(s.labels.values())): s.value for s in samples}


def test_answers_are_counted(service, folder):
    before = metrics(service)
    whole = service.client.post("/answer", **form()).json()
    service.client.post("/stream", **form())
    assert service.client.post("/answer", **form(question=" ")).status_code == 422
    service.client.get("/a/path/of/the/client")
    after = metrics(service)

    def added(*name):
        return after[name] - before.get(name, 0)

    assert added("requests_total", "/answer", "200") == added("requests_total", "/stream", "200") == 1
    assert added("requests_total", "/answer", "422") == added("requests_total", "404", "other") == 1
    assert not any("client" in part for name in after for part in name)
    assert added("tokens_total") == 2 * whole["tokens"]
    assert added("kept_slots_total") == 2 * whole["kept_slots"] > 0
    assert added("prompt_slots_total") == 2 * whole["prompt_slots"]
    assert added("batch_size_count") == 2 and added("request_seconds_count", "/stream") == 1
    assert after["engine_alive",] == 1 and after["in_flight",] == after["waiting",] == after["check_failed",] == 0
    digest = sha256_file(folder / "1.safetensors")
    assert after["scores", *sorted(["1.safetensors", "", digest])] == 1
