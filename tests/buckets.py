"""A server of this machine that answers as Google Cloud Storage does, as far as gcsfs and TensorStore ask, with faults.

It keeps generations, refuses what a precondition forbids, and does what a test wants to go wrong. A pytest plugin: a
test module asks for the fixture with ``pytest_plugins = ["tests.buckets"]``.
"""

import base64
import contextlib
import dataclasses
import datetime
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as wsm_jax.io.bucket does
pytest.importorskip("gcsfs", reason="pip install 'wsm-jax[gcs]'")
google_crc32c = pytest.importorskip("google_crc32c")

BUCKET = "wsm-test"
CUT = -1  # a fault: the connection ends in the middle of the request
# (method, path with query, body) -> None, CUT or a status to answer with.
Fault = Callable[[str, str, bytes], int | None]
_OBJECT = re.compile(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?/?")


class Refused(Exception):
    """Answered with a status."""


@dataclasses.dataclass
class Object:
    """What a name stands for."""

    data: bytes
    generation: int
    made: str

    def meta(self, name: str) -> dict[str, str]:
        """As the service describes it."""
        crc = base64.b64encode(google_crc32c.Checksum(self.data).digest()).decode()
        known = {"bucket": BUCKET, "name": name, "size": str(len(self.data)), "crc32c": crc, "metageneration": "1"}
        when = {"timeCreated": self.made, "updated": self.made}
        return {"kind": "storage#object", "generation": str(self.generation), **known, **when}


class Bucket(ThreadingHTTPServer):
    """The bucket BUCKET, and nothing else.

    Attributes:
      objects: name -> object.
      fault: asked about each request before it is answered; None: nothing goes wrong.
      requests: (method, path) of each.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, tuple[str, bytearray, dict[str, str]]] = {}
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        self.lock, self.generation = threading.RLock(), 1_700_000_000_000_000

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process take it for the service."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "127.0.0.1:9",
            "FSSPEC_GCS": '{"token": "anon"}',
        }

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Within it requests fail as ``fault`` says."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def handle_error(self, *_: Any) -> None:
        """Nothing: clients that are killed leave broken connections."""

    def names(self, folder: str = "") -> list[str]:
        """The objects below a folder, without its name."""
        with self.lock:
            return sorted(name[len(folder) :] for name in self.objects if name.startswith(folder))

    def check(self, name: str, query: dict[str, str], otherwise: int = 412) -> None:
        """Refuses what its preconditions forbid."""
        found = self.objects.get(name)
        generation = found.generation if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412)
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            raise Refused(otherwise)

    def put(self, name: str, data: bytes, query: dict[str, str]) -> dict[str, str]:
        """Makes an object of a new generation."""
        with self.lock:
            self.check(name, query)
            self.generation += 1
            made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[name] = Object(data, self.generation, made)
            return self.objects[name].meta(name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Bucket

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)

    def _handle(self) -> None:
        parsed = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parsed.query, keep_blank_values=True))
        fault = self.server.fault
        self.server.requests.append((self.command, self.path))
        body = self._body()
        found = fault(self.command, self.path, body) if fault else None
        if found == CUT:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if found:
                raise Refused(found)
            self._route(parsed.path, query, body)
        except Refused as refused:
            self._answer(refused.args[0], {"error": {"code": refused.args[0], "message": "as the test wants it"}})

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        match = _OBJECT.fullmatch(path)
        if match is None or match[2] != BUCKET:
            raise Refused(404)
        name = urllib.parse.unquote(match[3]) if match[3] else None
        if match[1] == "upload":
            self._upload(query, body)
        elif name is not None:
            self._delete(name, query) if self.command == "DELETE" else self._get(name, query)
        elif "/o" in path.rpartition(BUCKET)[2]:
            self._list(query)
        else:
            self._answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US"})

    def _delete(self, name: str, query: dict[str, str]) -> None:
        with self.server.lock:
            if name not in self.server.objects:
                raise Refused(404)
            self.server.check(name, query)
            del self.server.objects[name]
        self._answer(204)

    def _get(self, name: str, query: dict[str, str]) -> None:
        with self.server.lock:
            if (found := self.server.objects.get(name)) is None:
                raise Refused(404)
            self.server.check(name, query, otherwise=304)
        if query.get("alt") != "media":
            self._answer(200, found.meta(name))
            return
        headers = {"x-goog-generation": str(found.generation), "x-goog-metageneration": "1"}
        headers["x-goog-stored-content-length"] = str(len(found.data))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked or not any(asked.groups()):
            self._answer(200, found.data, headers)
            return
        size = len(found.data)
        first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        stop = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
        if first >= size:
            raise Refused(416)
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size}"
        self._answer(206, found.data[first:stop], headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter, most = query.get("prefix", ""), query.get("delimiter"), int(query.get("maxResults", 1000))
        start, end, after = (query.get(name, "") for name in ("startOffset", "endOffset", "pageToken"))
        items: list[dict[str, str]] = []
        folders: list[str] = []
        last = more = None
        with self.server.lock:
            for name in sorted(self.server.objects, key=str.encode):
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                shown = name if cut < 0 else name[: cut + 1]
                if not name.startswith(prefix) or name < start or (end and name >= end) or (after and shown <= after):
                    continue
                if folders[-1:] == [shown]:
                    continue
                if len(items) + len(folders) == most:
                    more = last
                    break
                items.append(self.server.objects[name].meta(name)) if cut < 0 else folders.append(shown)
                last = shown
        page = {"nextPageToken": more} if more else {}
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": folders, **page})

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        put, kind = self.server.put, query.get("uploadType")
        if kind == "media":
            self._answer(200, put(query["name"], body, query))
        elif kind == "multipart":
            described = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert described
            parts = body.split(b"--" + described[1].encode())[1:3]
            meta, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            self._answer(200, put(query.get("name") or json.loads(meta)["name"], data, query))
        elif "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            with self.server.lock:
                self.server.check(name, query)
                self.server.generation += 1
                number = str(self.server.generation)
                self.server.uploads[number] = name, bytearray(), query
            self._answer(200, {}, {"Location": f"{self.server.url}{self.path}&upload_id={number}"})
        else:
            self._continue(query["upload_id"], body)

    def _continue(self, number: str, body: bytes) -> None:
        """A part of a resumable upload."""
        if number not in self.server.uploads:
            raise Refused(404)
        name, held, query = self.server.uploads[number]
        asked = self.headers.get("Content-Range") or f"bytes 0-{len(body) - 1}/{len(body)}"
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", asked)
        assert match
        if match[1] is not None and int(match[1]) == len(held):
            held += body
        if match[2] != "*" and len(held) >= int(match[2]):
            del self.server.uploads[number]
            self._answer(200, self.server.put(name, bytes(held), query))
            return
        self._answer(308, b"", {"Range": f"bytes=0-{len(held) - 1}"} if held else {})


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """The server, which this process and those that it starts take for the service."""
    server = Bucket()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(server.environment)
    yield server
    server.shutdown()
    server.server_close()
    os.environ.clear()
    os.environ.update(before)
