"""Servers of this machine that misbehave on demand: a stand-in for the hub, and a proxy before a real S3 server."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Server(http.server.ThreadingHTTPServer):
    """What every handler here shares.

    Attributes:
        faults: taken one by one by the answers that hold a file: a status code, "cut" (the connection closes in the
            middle), "stall" (it goes silent there), "flip" (one bit is wrong), "expired" (S3 credentials) or None.
        sent: bytes of files that were sent.
        paths: of the files asked for, in order.
    """

    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.faults: list[str | int | None] = []
        self.sent = 0
        self.paths: list[str] = []
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers, with the faults asked for."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """An answer that is not the content of a file."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """An answer that is the content of a file, after the next fault."""
        server = self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.paths.append(self.path)
        if isinstance(fault, int):
            self.answer(fault, b"", {})
            return
        if fault == "expired":
            self.answer(400, EXPIRED, {"Content-Type": "application/xml"})
            return
        if fault == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault in ("cut", "stall"):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                server.stopping.wait(30)
            self.close_connection = True
            return
        self.answer(status, body, headers)
        with server.lock:
            server.sent += len(body)


class _HubHandler(Handler):
    """GET of repository facts and of files, as huggingface_hub asks for them."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+?)(?:/revision/(.+))?", path)
        if found:
            self._facts(found[2], found[3] or "main")
            return
        found = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.server.repos.get(found[1]) if found else None
        if not found or repo is None or found[3] not in repo.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = repo.files[found[3]]
        headers = {
            "X-Repo-Commit": repo.commit,
            "ETag": f'"{repo.digest(found[3])}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
        elif asked:
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            self.answer_file(206, data[start:stop], headers)
        else:
            self.answer_file(200, data, headers)

    def _facts(self, name: str, revision: str) -> None:
        if self.server.trouble:
            self.answer(self.server.trouble.pop(0), b"", {})
            return
        repo = self.server.repos.get(name)
        if repo is None or repo.gated:
            code, status = ("RepoNotFound", 404) if repo is None else ("GatedRepo", 403)
            self.answer(status, b"{}", {"X-Error-Code": code})
        elif revision not in ("main", repo.commit):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [repo.facts(file) for file in sorted(repo.files)]
            card = {"license": repo.licence} if repo.licence else {}
            facts = {"id": name, "sha": repo.commit, "siblings": files, "cardData": card, "tags": [], "private": False}
            self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})


class Repo:
    """A repository: its files, those of `large` kept as the hub keeps large ones (named by their SHA-256)."""

    def __init__(self, files: dict[str, bytes], licence: str | None = "mit", gated: bool = False) -> None:
        self.files, self.licence, self.gated = files, licence, gated
        self.commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def _large(self, name: str) -> bool:
        return not name.endswith((".json", ".jsonl", ".md", ".txt"))

    def digest(self, name: str) -> str:
        """SHA-256 of a large file, git blob id of a small one."""
        data = self.files[name]
        if self._large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def facts(self, name: str) -> dict[str, object]:
        """One entry of `siblings`, with sizes and hashes."""
        data = self.files[name]
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        facts: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if self._large(name):
            facts["lfs"] = {"sha256": self.digest(name), "size": len(data), "pointerSize": 134}
        return facts


class Hub(Server):
    """A hub with the repositories in `repos`; `trouble` are status codes its next answers about them have."""

    def __init__(self) -> None:
        super().__init__(_HubHandler)
        self.repos: dict[str, Repo] = {}
        self.trouble: list[int] = []


class _ProxyHandler(Handler):
    """Hands everything on; GETs of objects are answers with faults."""

    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            data = reply.read()
        finally:
            upstream.close()
        left_out = ("content-length", "transfer-encoding", "connection", "date", "server")
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in left_out}
        is_object = self.command == "GET" and "list-type" not in self.path
        if self.command == "HEAD":
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in left_out[1:]:
                    self.send_header(name, value)
            self.end_headers()
        else:
            (self.answer_file if is_object else self.answer)(reply.status, data, headers)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward


class Proxy(Server):
    """A proxy before the server on loopback port `target`."""

    def __init__(self, target: int) -> None:
        super().__init__(_ProxyHandler)
        self.target = target
