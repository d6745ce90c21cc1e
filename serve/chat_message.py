"""One choice's message in the making: content and calls of tools. A whole message is put together from what a stream of it would be."""

from typing import Any

from sarathi_jax.serve.generation import Piece
from sarathi_jax.serve.tool_use import ToolUse
from sarathi_jax.text.tool_call_parser import CallDelta, Delta


class ChatMessage:
    """tools: that the answer may call; None: all of its text is content."""

    def __init__(self, tools: ToolUse | None) -> None:
        self._parser = None if tools is None else tools.new_parser()

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds to the message, as chunks have it."""
        if self._parser is None:
            return [{"content": piece.text}] if piece.text else []
        deltas = self._parser.push(piece.text)
        if piece.finish_reason is not None:
            deltas += self._parser.finish()
        return [_wire(delta) for delta in deltas]

    def whole(self, piece: Piece) -> dict[str, Any]:
        """The message that a choice's only piece is."""
        contents: list[str] = []
        calls: list[dict[str, Any]] = []
        for delta in self.deltas(piece):
            contents.append(delta.get("content", ""))
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    calls.append({key: value for key, value in call.items() if key != "index"})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        content = "".join(contents)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return message

    def finish_reason(self, piece: Piece) -> str | None:
        """After its deltas were asked for."""
        has_calls = self._parser is not None and self._parser.num_calls > 0 and not self._parser.is_cut
        return "tool_calls" if has_calls and piece.finish_reason == "stop" else piece.finish_reason


def _wire(delta: Delta) -> dict[str, Any]:
    if not isinstance(delta, CallDelta):
        return {"content": delta}
    function: dict[str, Any] = {"arguments": delta.arguments}
    call: dict[str, Any] = {"index": delta.number, "function": function}
    if delta.call_id is not None:
        function["name"] = delta.name
        call |= {"id": delta.call_id, "type": "function"}
    return {"tool_calls": [call]}
