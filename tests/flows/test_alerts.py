"""Alerts reach a webhook: of runs that fail, and of candidates that the gate refuses, once for each."""

from __future__ import annotations

import json
from contextlib import suppress
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.events.actions import RunDeployment

from flows.alerts import ALERT_FAILED, ALERT_REFUSED, PREFIX, RESTART, SILENT, automations, install_all, save_webhook
from flows.stages import REFUSED, REFUSED_PREFIX
from tests.flows.receiver import receiver
from tests.flows.runs import SILENCE
from tests.servers import wait_for


@pytest.fixture
def alerts(prefect_api, monkeypatch):
    """Bodies that the automations have sent."""
    with receiver() as (address, bodies), get_client(sync_client=True) as client:
        monkeypatch.setenv("SPARSEMM_ALERT_WEBHOOK", address)
        install_all(client, automations(SILENCE, save_webhook()))
        yield bodies
        for name in (ALERT_FAILED, ALERT_REFUSED):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


def texts(bodies, part):
    """Texts of the alerts that hold `part`."""
    return [text for text in (json.loads(body)["text"] for body in bodies) if part in text]


def alerted(bodies, act, part):
    """The alert of an act, which is repeated: on a busy machine the server gives up a webhook after five seconds."""
    for seconds in (100.0, 100.0, 300.0):
        act()
        with suppress(AssertionError):
            wait_for(lambda: texts(bodies, part), f"an alert of {part}", seconds)
            break
    assert texts(bodies, part), f"no alert of {part}"
    return texts(bodies, part)[0]


def test_a_failed_run_and_a_refused_candidate_are_reported(alerts):
    from prefect import flow, tags
    from prefect.events import emit_event

    @flow(flow_run_name="rechase some-model r3")
    def fails():
        raise ValueError('a "quoted" reason')

    def fail():
        with tags("sparsemm"), pytest.raises(ValueError, match="quoted"):
            fails()

    def refuse():
        resource = {"prefect.resource.id": f"{REFUSED_PREFIX}some-model", "prefect.resource.name": "some-model"}
        emit_event(REFUSED, resource, payload={"version": "4", "reasons": "FAIL: split-half 0.1"})

    assert 'a "quoted" reason' in alerted(alerts, fail, "rechase some-model r3 failed")
    assert "FAIL: split-half 0.1" in alerted(alerts, refuse, "some-model version 4")


def test_runs_of_others_are_not_reported(alerts):
    from prefect import flow

    @flow(flow_run_name="of somebody else")
    def fails():
        raise ValueError("reason")

    with pytest.raises(ValueError, match="reason"):
        fails()
    test_a_failed_run_and_a_refused_candidate_are_reported(alerts)  # which come later
    assert not texts(alerts, "of somebody else")


def test_automations_of_earlier_versions_go_and_alerts_and_triggers_stay(alerts):
    old, trigger = f"{PREFIX}crashed runs start again", f"{PREFIX}a trigger of prefect.yaml"

    def names():
        return {a.name for a in client.read_automations() if a.name.startswith(PREFIX)}

    with get_client(sync_client=True) as client:
        before = names()
        (restart,) = [a for a in automations(SILENCE) if a.name == RESTART]
        client.create_automation(restart.model_copy(update={"name": old}))
        runs = {"name": trigger, "actions": [RunDeployment(source="selected", deployment_id=uuid4())]}
        created = client.create_automation(restart.model_copy(update=runs))
        assert names() == before | {old, trigger}
        install_all(client, automations(SILENCE))
        assert names() == before | {trigger}
        client.delete_automation(created)
    assert {SILENT, RESTART, ALERT_FAILED, ALERT_REFUSED} <= before
