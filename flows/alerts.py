"""The automations on a Prefect server: restart runs that died, and send alerts to a webhook."""

from __future__ import annotations

import os
from datetime import timedelta
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.stages import REFUSED, REFUSED_PREFIX

WEBHOOK = "SPARSEMM_ALERT_WEBHOOK"  # environment variable with the address that alerts are sent to
BLOCK = "sparsemm-alerts"
PREFIX = "sparsemm: "  # of the names of all automations of `sparsemm flows deploy`
OURS: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.sparsemm"}
SILENT, RESTART = f"{PREFIX}mark silent flow runs as crashed", f"{PREFIX}restart crashed flow runs"
ALERT_FAILED, ALERT_REFUSED = f"{PREFIX}alert on failed flow runs", f"{PREFIX}alert on candidates that the gate refuses"
# JSON with one field `text`, which chat services accept. Prefect fills in the templates.
FAILED_TEXT = (
    '{"text": {{ ("SparseMM: " ~ flow_run.name ~ " failed: " ~ (flow_run.state.message or "") ~ " "'
    ' ~ (flow_run|ui_url or "")) | tojson }}}'
)
REFUSED_TEXT = (
    '{"text": {{ ("SparseMM: the gate refuses " ~ event.resource.name ~ " version " ~ event.payload.version ~ ": "'
    " ~ event.payload.reasons) | tojson }}}"
)


def automations(silence_seconds: int, webhook: UUID | None = None) -> list[AutomationCore]:
    """Returns the automations: two for runs whose engine has died, and with a webhook two that send alerts.

    Without the first two, a dead run would hold its GPU slot forever.

    Args:
        silence_seconds: a run without any event for this long counts as dead; at least three heartbeats.
        webhook: id of the block that alerts are sent through.
    """
    dead = _automation(
        SILENT,
        EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence_seconds),
        ),
        _state(StateType.CRASHED, "Crashed", f"nothing heard for {silence_seconds} s"),
    )
    restart = _state(StateType.SCHEDULED, "AwaitingRetry", "after a crash")
    result = [dead, _automation(RESTART, _each_run("Crashed"), restart)]
    if webhook is not None:
        refused = EventTrigger(
            expect={REFUSED},
            match={"prefect.resource.id": f"{REFUSED_PREFIX}*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        )
        failed = CallWebhook(block_document_id=webhook, payload=FAILED_TEXT)
        result.append(_automation(ALERT_FAILED, _each_run("Failed"), failed))
        call = CallWebhook(block_document_id=webhook, payload=REFUSED_TEXT)
        result.append(_automation(ALERT_REFUSED, refused, call))
    return result


def _automation(name: str, trigger: EventTrigger, action: ActionTypes) -> AutomationCore:
    return AutomationCore(name=name, trigger=trigger, actions=[action])


def _each_run(state: str) -> EventTrigger:
    """Fires once for each of our flow runs that enters the state."""
    return EventTrigger(
        expect={f"prefect.flow-run.{state}"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def _state(kind: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=kind, name=name, message=message, force=False)


def save_webhook() -> UUID | None:
    """Stores the webhook's address as an encrypted block on the server, and returns its id; None if there is none."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return None
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(method="POST", url=SecretStr(address), headers=headers)
    saved = block.save(BLOCK, overwrite=True)
    assert isinstance(saved, UUID)
    return saved


def install_all(client: SyncPrefectClient, wanted: list[AutomationCore]) -> None:
    """Installs the automations, and deletes those of earlier versions.

    Alerts that exist stay if none are wanted, and so do the triggers of prefect.yaml, which `prefect deploy` replaces:
    an arrival in between would be missed. Only their action tells them from ours: the server does not say whose one is.
    """
    known = {automation.name for automation in wanted} | {ALERT_FAILED, ALERT_REFUSED}
    for existing in client.read_automations():
        triggers_a_deployment = any(isinstance(action, RunDeployment) for action in existing.actions)
        if existing.name.startswith(PREFIX) and existing.name not in known and not triggers_a_deployment:
            client.delete_automation(existing.id)
    for automation in wanted:
        install(client, automation)


def install(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Creates an automation, or replaces the one of that name if it differs.

    An equal one is kept, because a new automation does not know the runs that are already being watched.
    """
    values = automation.model_dump(mode="json")
    kept = False
    for existing in client.read_automations_by_name(automation.name):
        if not kept and existing.model_dump(mode="json", include=set(values)) == values:
            kept = True
        else:
            client.delete_automation(existing.id)
    if not kept:
        client.create_automation(automation)
