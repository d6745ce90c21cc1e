"""A process of its own that renders one model's chat templates: hostile ones cost it, and not the engine.

Run as a script by `chat_template.py`; imports nothing of this package. Frames on stdin and stdout are a 4-byte
big-endian length and that many bytes of JSON. The first frame in holds the settings, the first one out says that the
worker is ready; each further frame in is one render.

Two bounds are the system's: processor time per render, which also ends a worker whose parent is gone, and address
space."""

import contextlib
import json
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser

MAX_ADDRESS_BYTES = 1 << 30


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant said, for training; here its body is rendered as
    it stands."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class RefusedError(Exception):
    """The template called `raise_exception`."""


def raise_exception(message: object) -> None:
    raise RefusedError(str(message))


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """jinja's own filter escapes HTML and sorts keys; models were trained on neither."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def new_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The dialect that chat templates on the hub are written in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    own_globals: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals.update(own_globals)
    return environment


def render(template: jinja2.Template, variables: dict[str, Any], max_chars: int) -> dict[str, str]:
    """Returns: {"text": ...}, or {"error": "refused" | "unsafe" | "failed" | "too_long", "message": ...}."""
    parts: list[str] = []
    num_chars = 0
    try:
        for part in template.generate(variables):
            parts.append(part)
            num_chars += len(part)
            if num_chars > max_chars:
                return {"error": "too_long", "message": f"more than {max_chars} characters"}
    except RefusedError as error:
        return {"error": "refused", "message": str(error)}
    except SecurityError as error:
        return {"error": "unsafe", "message": str(error)}
    except Exception as error:  # whatever a stranger's template does wrong
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"}
    return {"text": "".join(parts)}


def answer(
    request: dict[str, Any], sources: dict[str, str], compiled: dict[str, jinja2.Template], max_chars: int
) -> dict[str, str]:
    """One render; compiles the template when it is first asked for."""
    name: str = request["template"]
    if name not in compiled:
        try:
            compiled[name] = new_environment().from_string(sources[name])
        except jinja2.TemplateSyntaxError as error:
            return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
        except Exception as error:  # nested too deep, or too large, to compile
            return {"error": "syntax", "message": f"{type(error).__name__}: {error}"}
    return render(compiled[name], request["variables"], max_chars)


def read_frames(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    while len(header := stream.read(4)) == 4:
        yield json.loads(stream.read(struct.unpack(">I", header)[0]))


def write_frame(stream: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def main() -> None:
    frames = read_frames(sys.stdin.buffer)
    settings = next(frames)
    with contextlib.suppress(ValueError, OSError):  # a system may know no such limit; the time limit stands anyway
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    compiled: dict[str, jinja2.Template] = {}
    write_frame(sys.stdout.buffer, {"text": "ready"})
    for request in frames:
        signal.setitimer(signal.ITIMER_PROF, settings["deadline_s"])  # SIGPROF, unhandled, ends the process
        reply = answer(request, settings["sources"], compiled, settings["max_chars"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(sys.stdout.buffer, reply)


if __name__ == "__main__":
    main()
