"""Renders one model's chat templates; what `chat_template.py` has a process of its own for. A task of `worker_main.py`: imports nothing of this package."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser


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


def start(settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, str]]:
    """settings: sources, max_chars. A request: which template, and its variables."""
    compiled: dict[str, jinja2.Template] = {}
    return lambda request: answer(request, settings["sources"], compiled, settings["max_chars"])
