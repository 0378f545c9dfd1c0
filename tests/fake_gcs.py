"""A server that speaks as much of Google Cloud Storage's JSON and XML APIs as TensorFlow and Orbax need here.

The clients are the real ones, told by environment variables to ask this server. TensorStore and Google's own take an
address. TensorFlow always asks https://www.googleapis.com and https://storage.googleapis.com, but through a proxy if
there is one: that is this server as well, with a certificate for the two names that TensorFlow is told to trust.
"""

import http.server
import json
import multiprocessing
import multiprocessing.managers
import pathlib
import re
import secrets
import ssl
import threading
import time
import urllib.parse

import trustme

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class _Server:
    """What `FakeGcs` asks for, in the process of the server.

    As in the real one there are no folders, an object is replaced as a whole, and nothing is renamed, only copied.
    """

    def __init__(self, folder: str):
        self.objects, self.generations, self.uploads = {}, {}, {}
        self.requests, self.rules = [], []
        self.lock = threading.RLock()
        authority, self.tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*_HOSTS).configure_cert(self.tls)
        authority.cert_pem.write_to_path(f"{folder}/authority.pem")
        handler = type("Handler", (_Handler,), {"gcs": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def port(self) -> int:
        return self.http.server_port

    def names(self, bucket: str = "bucket") -> list[str]:
        with self.lock:
            return sorted(name for found, name in self.objects if found == bucket)

    def get(self, name: str, bucket: str = "bucket") -> bytes:
        return self.objects[bucket, name]

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> dict:
        with self.lock:
            self.objects[bucket, name] = content
            self.generations[bucket, name] = time.time_ns() // 1000
            return self.describe(bucket, name)

    def remove(self, name: str, bucket: str = "bucket") -> None:
        with self.lock:
            del self.objects[bucket, name], self.generations[bucket, name]

    def take_requests(self) -> list[tuple[str, str]]:
        with self.lock:
            requests, self.requests = self.requests, []
            return requests

    def answer(self, rules: list[tuple[str, int | None, float]]) -> None:
        self.rules = rules

    def describe(self, bucket: str, name: str) -> dict:
        generation = self.generations[bucket, name]
        seconds, microseconds = divmod(generation, 1_000_000)
        updated = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{microseconds // 1000:03d}Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.objects[bucket, name])),
            "generation": str(generation),
            "metageneration": "1",
            "updated": updated,
            "timeCreated": updated,
        }


class _Manager(multiprocessing.managers.BaseManager):
    """Runs the server in a process of its own: TensorFlow keeps Python's lock while it waits for an answer."""


_Manager.register("Server", _Server)


class FakeGcs:
    """A server while it is entered; `environment` is for its clients.

    `names()`, `get(name)`, `put(name, bytes)`, `remove(name)` are about objects, of gs://bucket if no other is given;
    `take_requests()` gives every (method, path) since the last time; `answer([(pattern, status, seconds), …])` has it
    wait, and answer with a status that is not None, where the pattern is in "METHOD path", unquoted.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._manager = _Manager(ctx=multiprocessing.get_context("spawn"))

    def __enter__(self):
        self._manager.start()
        server = self._manager.Server(str(self._folder))
        self.names, self.get, self.put, self.remove = server.names, server.get, server.put, server.remove
        self.take_requests, self.answer = server.take_requests, server.answer
        address = f"http://127.0.0.1:{server.port()}"
        self.environment = {
            "https_proxy": address,
            "no_proxy": "",
            "CURL_CA_BUNDLE": str(self._folder / "authority.pem"),
            "TENSORSTORE_GCS_HTTP_URL": address,
            "STORAGE_EMULATOR_HOST": address,
            "GOOGLE_CLOUD_PROJECT": "project",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
        }
        return self

    def __exit__(self, *_):
        self._manager.shutdown()

    def upload_folder(self, folder: pathlib.Path, prefix: str) -> None:
        """What `gcloud storage rsync --recursive` does."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart, and the second waited 40 ms for an answer
    gcs: _Server

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.connection = self.gcs.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def do_PUT(self):
        self._serve("PUT")

    def do_DELETE(self):
        self._serve("DELETE")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _serve(self, method: str) -> None:
        body = self._body()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        asked = f"{method} {urllib.parse.unquote(self.path)}"
        rules = [(status, seconds) for pattern, status, seconds in self.gcs.rules if re.search(pattern, asked)]
        status, seconds = rules[0] if rules else (None, 0)
        with self.gcs.lock:
            self.gcs.requests.append((method, self.path))
        time.sleep(seconds)
        with self.gcs.lock:
            if status is not None:
                self._answer(status, b"refused")
            elif match := re.fullmatch(r"/storage/v1/b/([^/]+)", url.path):
                self._json({"name": match[1], "location": "US"})
            elif re.fullmatch(r"/storage/v1/b/[^/]+/storageLayout", url.path):
                self._json({"kind": "storage#storageLayout", "hierarchicalNamespace": {"enabled": False}})
            elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", url.path):
                self._list(match[1], query)
            elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", url.path):
                self._copy(*map(urllib.parse.unquote, match.groups()))
            elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", url.path):
                self._object(method, match[1], urllib.parse.unquote(match[2]), query)
            elif match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", url.path):
                self._upload(method, match[1], query, body)
            elif match := re.fullmatch(r"/([^/]+)/(.+)", url.path):  # the XML API, which TensorFlow reads through
                self._object(method, match[1], urllib.parse.unquote(match[2]), {"alt": "media"})
            else:
                raise AssertionError(f"{method} {self.path} is not known to {__name__}")

    def _list(self, bucket: str, query: dict) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in self.gcs.names(bucket):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.gcs.describe(bucket, name))
        limit = int(query.get("maxResults", 1000))
        self._json({"kind": "storage#objects", "items": items[:limit], "prefixes": sorted(prefixes)})

    def _object(self, method: str, bucket: str, name: str, query: dict) -> None:
        generation = self.gcs.generations.get((bucket, name), 0)
        if method == "DELETE":
            if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
                self._answer(412)
            elif self.gcs.objects.pop((bucket, name), None) is None:
                self._answer(404)
            else:
                del self.gcs.generations[bucket, name]
                self._answer(204)
        elif generation == 0:
            self._answer(404, b"not found")
        elif query.get("ifGenerationNotMatch") == str(generation):
            self._answer(304)
        elif query.get("ifGenerationMatch", str(generation)) != str(generation):
            self._answer(412)
        elif query.get("alt") == "media":
            self._content(self.gcs.objects[bucket, name], generation)
        else:
            self._json(self.gcs.describe(bucket, name))

    def _content(self, content: bytes, generation: int) -> None:
        headers = {"x-goog-generation": str(generation)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, content, headers)
            return
        first = int(match[1]) if match[1] else max(len(content) - int(match[2]), 0)
        last = int(match[2]) if match[1] and match[2] else len(content) - 1
        last = min(last, len(content) - 1)
        if first > last:
            self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers)

    def _copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
        if (bucket, name) not in self.gcs.objects:
            self._answer(404)
            return
        resource = self.gcs.put(to_name, self.gcs.objects[bucket, name], to_bucket)
        self._json({"kind": "storage#rewriteResponse", "done": True, "resource": resource})

    def _upload(self, method: str, bucket: str, query: dict, body: bytes) -> None:
        if query.get("uploadType") == "media":
            generation = self.gcs.generations.get((bucket, query["name"]), 0)
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                self._answer(412)
            else:
                self._json(self.gcs.put(query["name"], body, bucket))
        elif method == "POST":
            key = f"upload-{secrets.token_hex(8)}"
            self.gcs.uploads[key] = (query["name"], bytearray())
            location = f"https://www.googleapis.com/upload/storage/v1/b/{bucket}/o?upload_id={key}"
            self._answer(200, b"", {"Location": location})
        else:
            name, received = self.gcs.uploads[query["upload_id"]]
            if "Content-Range" not in self.headers:  # all of it at once
                self._json(self.gcs.put(name, body, bucket))
                return
            begin, end, total = re.fullmatch(
                r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"]
            ).groups()
            if begin is not None:
                received[int(begin) : int(end) + 1] = body
            if total != "*" and len(received) == int(total):
                self._json(self.gcs.put(name, bytes(received), bucket))
                received.clear()  # a run uploads its events again and again
            else:
                self._answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"} if received else {})

    def _json(self, value: dict) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
