"""The errors this package raises on purpose. Every message says the rule, what was got, and a remedy.

    SarathiError
    |-- ConfigError          an engine option is wrong, or two options disagree        (also a ValueError)
    |-- RequestError         one request's input is wrong; the engine goes on          (also a ValueError)
    |-- ModelError           a model folder or checkpoint is wrong
    |   `-- ModelNotFoundError   it is not there                                       (also a FileNotFoundError)
    |-- CapacityError        what was asked for does not fit the memory, or the disk, there is
    `-- EngineError          a step failed, or an invariant of the engine does not hold
        `-- GroupError           a process of the engine's group is lost, and the engine with it

An `AssertionError` is always a fault of this package, never of its user.
"""


class SarathiError(Exception):
    """Root of every error raised on purpose."""


class ConfigError(SarathiError, ValueError):
    """An engine option is out of range, unknown, or contradicts another one."""


class RequestError(SarathiError, ValueError):
    """A request can't be served as it stands. `param` names the field at fault, in the caller's words; `code` is what OpenAI's API calls this kind of error."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelError(SarathiError):
    """A model folder, its configuration, its tokenizer or its weights are wrong."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A model folder or one of its files is not there."""


class CapacityError(SarathiError):
    """Weights, temporary buffers and KV pages together exceed the memory there is, or weights the disk."""


class EngineError(SarathiError):
    """A step failed, or the engine can't go on."""


class GroupError(EngineError):
    """A process of the engine's group is lost: no step can run any more. The process that gets this should end."""
