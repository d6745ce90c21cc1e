"""The outermost layer: who may come in, with what kind of body, and how much of it; names every request, and logs it. Looks at nothing but the head."""

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.limited_body import BodyRoom, LimitedBody, too_large

access_logger = logging.getLogger("sarathi_jax.access")

# What probes ask for, and the page's own files, which are the same for everybody.
PUBLIC_PATHS = frozenset({"/health", "/live", "/ready", "/"})
# Asked for every few seconds, by machines: worth a line only when something is wrong.
ROUTINE_PATHS = frozenset({"/health", "/live", "/ready", "/metrics"})
PUBLIC_PREFIX = "/static/"
HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
ENVIRONMENT_KEY = "SARATHI_JAX_API_KEY"


def read_keys(config: ServeConfig, environ: Mapping[str, str]) -> dict[bytes, str]:
    """Digest of each key -> its name, which logs and metrics may show. Raises: ConfigError."""
    given = [*config.api_key, *filter(None, [environ.get(ENVIRONMENT_KEY)])]
    named = [(f"key-{place}", key) for place, key in enumerate(given, 1)]
    for place, words in enumerate(_key_lines(config.api_key_file), len(named) + 1):
        named.append((f"key-{place}", words[0]) if len(words) == 1 else (words[0], words[1]))
    for name, key in named:
        if not key.strip() or len(key.split()) > 1:
            raise ConfigError(
                f"A key must be one word, got {len(key.split())} for {name}: correct it, or leave it out."
            )
    return {digest(key.strip()): name for name, key in named}


def _key_lines(path: str | None) -> list[list[str]]:
    """The words of each line that has any. Raises: ConfigError."""
    if path is None:
        return []
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if not line.lstrip().startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file must be a readable text file, got {error}: correct it.") from error
    lines = [words for words in lines if words]
    if any(len(words) > 2 for words in lines):
        raise ConfigError(f"{path} must have KEY, or NAME KEY, in a line, got more than two words: correct it.")
    if not lines:
        raise ConfigError(f"{path} must have at least one key, got none: add one, or leave api_key_file out.")
    return lines


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Gate:
    """ASGI middleware. keys: digest -> name; none: everybody may come in. visited: told of each request's scope, status and seconds."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        keys: Mapping[bytes, str],
        visited: Callable[[Scope, int, float], None],
    ) -> None:
        self._app = app
        self._config = config
        self._keys = dict(keys)
        self._hosts = allowed_hosts(config)
        self._visited = visited
        self._room = BodyRoom(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope["headers"])
        visit = Visit(scope, headers, send, has_log=self._config.access_log)
        body = LimitedBody(receive, self._config, self._room)
        scope["close_body"] = body.close
        try:
            self._check(scope, headers)
        except ApiError as error:
            visit.closes = True
            await error.response()(scope, receive, visit.send)
        else:
            await self._app(scope, body.receive, visit.send)
        finally:
            body.close()
            visit.log()
            self._visited(scope, visit.status, visit.seconds)

    def _check(self, scope: Scope, headers: "Headers") -> None:
        """Raises: ApiError if the request can't come in."""
        hosts = headers.all(b"host")
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            raise ApiError(400, "invalid_value", "The Host header must name one host.", param="host")
        if (
            self._hosts
            and hosts[0].rpartition(":")[0].lower() not in self._hosts
            and hosts[0].lower() not in self._hosts
        ):
            message = f"This server is not called {hosts[0]!r}: start it with --allowed-host {hosts[0].split(':')[0]} if it is."
            raise ApiError(403, "invalid_value", message, param="host")
        if self._keys and not is_public(scope):
            scope["client_key"] = self._name_of_key(headers)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            self._check_body(headers)

    def _name_of_key(self, headers: "Headers") -> str:
        """Every key is compared, in the same time whatever was sent."""
        given = headers.all(b"authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        sent, name = digest(key.strip()), None
        for known, each in self._keys.items():
            if hmac.compare_digest(known, sent):
                name = each
        if name is None or scheme.lower() != "bearer":
            message = "A valid API key must be sent, as in `Authorization: Bearer KEY`."
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        return name

    def _check_body(self, headers: "Headers") -> None:
        kind = headers.get(b"content-type").split(";")[0].strip().lower()
        if kind != "application/json":
            message = f"The Content-Type must be application/json, got {ascii(kind)[:80]}."
            raise ApiError(415, "unsupported_media_type", message)
        if headers.get(b"content-encoding").lower() not in ("", "identity"):
            raise ApiError(
                415, "unsupported_media_type", "The body must not be compressed: leave out Content-Encoding."
            )
        length = headers.get(b"content-length")
        if length.isdecimal() and int(length) > self._config.max_body_bytes:
            raise too_large(self._config.max_body_bytes)


def allowed_hosts(config: ServeConfig) -> frozenset[str]:
    """Names that clients may call this server by; none: all. A server for this machine alone is no other's to name: a web page that has its own name
    lead here would read what the server answers."""
    is_local = config.host in LOCAL_NAMES
    return frozenset(name.lower() for name in (*config.allowed_host, *(LOCAL_NAMES if is_local else ())))


def is_public(scope: Scope) -> bool:
    """Whether a path is for everybody. It is the path that will be routed, and nothing that a client can dress up."""
    return scope["path"] in PUBLIC_PATHS or scope["path"].startswith(PUBLIC_PREFIX)


class Headers:
    """The head of one request."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = list(raw)

    def all(self, name: bytes) -> list[str]:
        return [value.decode("utf-8", "surrogateescape") for each, value in self._raw if each == name]

    def get(self, name: bytes) -> str:
        """The first one; "" if there is none."""
        return next(iter(self.all(name)), "")


class Visit:
    """One request, for the log: named by us, and by the client's name for it where that is harmless."""

    def __init__(self, scope: Scope, headers: Headers, send: Send, *, has_log: bool) -> None:
        self._scope = scope
        self._send = send
        self._has_log = has_log
        self.status = 0
        self._start_s = scope["arrival_s"] = time.perf_counter()
        asked = headers.get(b"x-request-id")
        self._name = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        self.closes = False
        scope["request_id"] = self._name

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self._name.encode())]
            if self.closes and b"connection" not in dict(message["headers"]):
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start_s

    def log(self) -> None:
        if self._has_log:
            said = {
                "client": (self._scope.get("client") or ("-",))[0],
                "method": self._scope["method"],
                "path": ascii(self._scope["path"])[1:-1][:200],
                "status": self.status,
                "ms": round(1e3 * self.seconds, 1),
                "request_id": self._name,
            }
            text = "%(client)s %(method)s %(path)s %(status)d %(ms).1f ms %(request_id)s"
            is_routine = self.status == 200 and self._scope["path"] in ROUTINE_PATHS
            access_logger.log(logging.DEBUG if is_routine else logging.INFO, text, said, extra={"fields": said})
