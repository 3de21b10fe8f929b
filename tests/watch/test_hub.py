import http.server
import json
import threading

import pytest

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch import newest

SHA = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers /api/models/ORG/NAME/revision/BRANCH as the hub does."""

    def do_GET(self):
        known = self.path.startswith("/api/models/org/name/revision/main")
        body = json.dumps({"id": "org/name", "sha": SHA} if known else {"error": "Revision Not Found"}).encode()
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_commit_of_the_branch(hub, tmp_path):
    found = newest(WatchParams(source="hub", location="org/name"), "k", tmp_path)
    assert (found.checkpoint, found.revision) == ("org/name", SHA)


def test_a_missing_branch_or_checkpoint(hub, tmp_path):
    with pytest.raises(WatchError, match="cannot read the branch"):
        newest(WatchParams(source="hub", location="org/name", branch="gone"), "k", tmp_path)
    with pytest.raises(WatchError, match="cannot read the branch"):
        newest(WatchParams(source="hub", location="not an id//"), "k", tmp_path)


def test_a_hub_that_is_down(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(WatchError, match="network"):
        newest(WatchParams(source="hub", location="org/name"), "k", tmp_path)
