"""What schemathesis is told of the server that its description cannot say. Named by SCHEMATHESIS_HOOKS, see test_openapi.py."""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """The model is the one that is served, and few tokens are wanted: what is behind them is to be reached."""
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = "demo"
        for name in ("max_tokens", "max_completion_tokens", "n", "min_tokens"):
            if type(body.get(name)) is int and body[name] > 4:
                body[name] = 4
        if type(body.get("deadline_ms")) in (int, float) and body["deadline_ms"] > 0:
            body["deadline_ms"] = 1e5  # a 504 that was asked for is right
