"""Whether a stranger's grammar compiles, by a worker process with a time limit and a memory limit: one that doesn't, or takes too much, is refused before its request
is admitted."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sarathi_jax.errors import ModelError, RequestError
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.grammar import LIMITS, grammar_text
from sarathi_jax.text.worker_process import WorkerProcess, WorkerProcessError

WORKER_PATH = Path(__file__).with_name("grammar_worker.py")
# Processor time of one grammar; real ones take a few milliseconds.
DEADLINE_S = 2.0
GROWTH_BYTES = 256 << 20
MAX_QUOTED_CHARS = 200
MAX_REPLY_BYTES = 1 << 20
MAX_VERDICTS = 4096


class GrammarChecker:
    """Checks grammars for one model. Safe to share between threads: checks take turns, and none takes longer than its limit; what was checked before waits for none.

    Args:
      tokenizer_json: text of the model's `tokenizer.json`.
      vocab_size: the width of its logits.
      eos_token_ids: what may end an output; at least one.

    The worker process starts with the first check and ends with this object, or by `close`. Verdicts are kept, by digest.
    """

    def __init__(
        self,
        tokenizer_json: str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        deadline_s: float = DEADLINE_S,
        growth_bytes: int = GROWTH_BYTES,
    ) -> None:
        self._deadline_s, self._growth_bytes = deadline_s, growth_bytes
        settings: dict[str, Any] = {
            "tokenizer_json": tokenizer_json,
            "vocab_size": vocab_size,
            "eos_token_ids": list(eos_token_ids),
            "limits": LIMITS,
        }
        self._process = WorkerProcess(
            WORKER_PATH, settings, deadline_s=deadline_s, growth_bytes=growth_bytes, max_reply_bytes=MAX_REPLY_BYTES
        )
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = threading.Lock()  # of verdicts
        self._process_lock = threading.Lock()

    def check(self, structured: StructuredOutput) -> None:
        """Raises: RequestError if the grammar is wrong, can't be satisfied, or takes more than its limits; ModelError if the model's tokenizer is of no use here."""
        grammar = grammar_text(structured)
        key = hashlib.sha256(grammar.encode()).digest()
        is_known, message = self._known(key)
        if not is_known:
            with self._process_lock:
                is_known, message = self._known(key)
                if not is_known:
                    message = self._ask(grammar)
                    self._keep(key, message)
        if message is not None:
            raise wrong_grammar(structured, message)

    def close(self) -> None:
        """End the worker process. A later check starts a new one."""
        with self._process_lock:
            self._process.close()

    def _known(self, key: bytes) -> tuple[bool, str | None]:
        """Whether there is a verdict, and what is wrong."""
        with self._lock:
            if key not in self._verdicts:
                return False, None
            self._verdicts.move_to_end(key)
            return True, self._verdicts[key]

    def _keep(self, key: bytes, message: str | None) -> None:
        with self._lock:
            self._verdicts[key] = message
            while len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)

    def _ask(self, grammar: str) -> str | None:
        """What is wrong, or None."""
        try:
            reply = self._process.ask(json.dumps({"grammar": grammar}).encode())
        except WorkerProcessError as error:
            return f"more than {self._deadline_s:g} s or {self._growth_bytes >> 20} MiB to compile ({error})"
        if reply.get("error") == "tokenizer":
            raise unfit_tokenizer(reply["message"])
        return reply["message"] if "error" in reply else None


def wrong_grammar(structured: StructuredOutput, message: str) -> RequestError:
    """What to say of a grammar that llguidance refuses."""
    got = " ".join(message.removesuffix("<non-verbose/>").split())[:MAX_QUOTED_CHARS]
    if got == "NoExtensionBias":
        got = "one that nothing satisfies"
    return RequestError(
        f"{structured.kind} must be one that can be compiled and satisfied, got {got}: correct it.",
        param=structured.kind,
    )


def unfit_tokenizer(message: str) -> ModelError:
    """What to say of a tokenizer that llguidance refuses."""
    return ModelError(
        f"structured output needs a tokenizer.json that llguidance reads, got {message[:MAX_QUOTED_CHARS]}: leave out structured, or use another model."
    )
