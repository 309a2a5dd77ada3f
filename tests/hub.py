"""A hub of our own on loopback (`HF_ENDPOINT`): repositories with commits, branches and tokens, and what goes wrong.

It answers what `huggingface_hub` asks for models and data sets: what a revision is, the files of a commit, and the
files themselves, also from the middle on (Range). Statuses and headers are those of the real one.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
PIECE = 1 << 14  # bytes


@dataclass
class Repository:
    """
    Attributes:
        commits: files by path, by commit.
        branches: commit by name.
        token: what may read it; None: everybody.
        gated: its files are for those with the token alone, while everybody sees that it is there.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" the pattern is found in.

    Attributes:
        status: to answer; 0: none.
        cut: bytes of the body after which the connection ends; -1: all are sent.
        abrupt: it ends with a reset.
        seconds: to wait before the answer.
    """

    pattern: str
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = -1
    abrupt: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """A request that was answered: "GET /path", with the bytes that were asked for and the token."""

    line: str
    range: str
    token: str | None


class Hub:
    """The server. Repositories are called datasets/owner/name and models/owner/name."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()  # that the hub knows
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Nobody answers at the address any more."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, name: str, files: Files | Path, branch: str = "main", **about: Any) -> str:
        """Put files, or those of a folder, into a repository as a commit, to which a branch moves.

        Args:
            about: attributes of the repository.
        """
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        repository = self.repositories.setdefault(name, Repository())
        for key, value in about.items():
            setattr(repository, key, value)
        if repository.token is not None:
            self.tokens.add(repository.token)
        content = repr([name, len(repository.commits), sorted(files.items())])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def fail(self, pattern: str, **how: Any) -> None:
        """See Fault."""
        with self.lock:
            self.faults.append(Fault(pattern, **how))

    def fault(self, line: str) -> Fault:
        """What goes wrong with a request; by default nothing."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return Fault("")

    def asked(self, pattern: str = "") -> list[Request]:
        """The requests so far that a pattern is found in."""
        with self.lock:
            return [one for one in self.requests if re.search(pattern, one.line)]

    def forget(self) -> None:
        """All requests and faults so far."""
        with self.lock:
            self.requests.clear()
            self.faults.clear()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_hub = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"
    fault: Fault

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self, method: Literal["GET", "HEAD"]) -> None:
        line = f"{method} {self.path}"
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with self.server_hub.lock:
            self.server_hub.requests.append(Request(line, self.headers.get("Range", ""), given))
        self.fault = self.server_hub.fault(line)
        time.sleep(self.fault.seconds)
        if self.fault.status:
            return self._answer(self.fault.status, b'{"error": "as a test wants it"}', self.fault.headers)
        path = unquote(urlsplit(self.path).path)
        if api := _API.fullmatch(path):
            return self._about(f"{api[1]}/{api[2]}", api[3], api[4] or "main", given)
        if file := _FILE.fullmatch(path):
            return self._file(f"{file[1] or 'models'}/{file[2]}", file[3], file[4], given)
        return self._refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def _about(self, name: str, what: str | None, revision: str, token: str | None) -> None:
        if (found := self._found(name, revision, token, False)) is None:
            return None
        commit, files = found
        if what == "tree":
            return self._json([_entry(path, content) for path, content in sorted(files.items())])
        return self._json(
            {
                "id": name.split("/", 1)[1],
                "sha": commit,
                "private": self.server_hub.repositories[name].token is not None,
                "siblings": [{"rfilename": path} for path in sorted(files)],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _file(self, name: str, revision: str, path: str, token: str | None) -> None:
        if (found := self._found(name, revision, token, True)) is None:
            return None
        commit, files = found
        known = {"X-Repo-Commit": commit}
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", known)
        content = files[path]
        known |= {"ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin is None:
            return self._answer(200, content, known)
        first = int(begin[1])
        known["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._answer(206, content[first:], known)

    def _found(self, name: str, revision: str, token: str | None, file: bool) -> tuple[str, Files] | None:
        """(commit, its files); None: the request was refused."""
        if token is not None and token not in self.server_hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        found = self.server_hub.repositories.get(name)
        allowed = found is not None and found.token in (None, token)
        if found is None or not (allowed or found.gated):
            self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
            return None
        if not allowed and file:
            self._refuse(401 if token is None else 403, "GatedRepo", f"Access to {name} is restricted")
            return None
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, found.commits[commit]

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        said = {**(headers or {}), "X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": message}).encode(), said)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut
        for begin in range(0, len(body) if cut < 0 else cut, PIECE):
            self.wfile.write(body[begin : begin + PIECE if cut < 0 else min(cut, begin + PIECE)])
        if cut >= 0:
            self._break_off()

    def _break_off(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        if self.fault.abrupt:  # a reset, which throws away what was not read yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def _oid(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}
