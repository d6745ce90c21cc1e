"""A check of `doctor`: its name, how it went, and what was found; and a report without the user's folders in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from sarathi_jax.errors import SarathiError

OK, WARN, FAIL = "ok", "warn", "FAIL"


class Check(NamedTuple):
    """state: OK, WARN or FAIL. text: of OK what was found; else rule, got, remedy."""

    name: str
    state: str
    text: str


def attempt(name: str, work: Callable[[], "str | Check"]) -> Check:
    """The check that `work` comes to: OK with its text, the check it returns, or FAIL with what it raises."""
    try:
        found = work()
    except SarathiError as error:
        return Check(name, FAIL, _one_line(error))
    except Exception as error:  # whatever a strange folder brings about is what the report is for
        return Check(
            name, FAIL, f"this check must come to an end, got {type(error).__name__}: {_one_line(error)}: report it."
        )
    return found if isinstance(found, Check) else Check(name, OK, found)


def without_paths(report: dict[str, Any], model: str | None) -> dict[str, Any]:
    """The same with the model's folder, the home folder and the working folder by their short names, in every text."""
    names = {str(Path.cwd()): ".", str(Path.home()): "~"}
    if model is not None and Path(model).expanduser().is_dir():
        folder = Path(model).expanduser()
        names = {str(folder.resolve()): "MODEL", str(folder.absolute()): "MODEL", **names}
        names |= {model: "MODEL"} if folder.is_absolute() else {}
    shorter = sorted(((path, name) for path, name in names.items() if len(path) > 1), key=lambda pair: -len(pair[0]))
    return cast("dict[str, Any]", _replaced(report, shorter))


def _replaced(value: Any, names: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for path, name in names:
            value = value.replace(path, name)
        return value
    if isinstance(value, dict):
        return {key: _replaced(each, names) for key, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_replaced(each, names) for each in cast("list[Any]", value)]
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
