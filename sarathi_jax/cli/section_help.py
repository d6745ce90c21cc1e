"""Help of a command with many options: its sections, and one of them, or all, when it is named: `--help engine`, `--help all`."""

import textwrap
from collections.abc import Sequence

from sarathi_jax.cli.options import Parser, did_you_mean

WORDS = ("-h", "--help")
WIDTH = 110
COMMON = ("positional arguments", "options")  # argparse's: MODEL and --help


def answer_help(parser: Parser, words: Sequence[str]) -> None:
    """Print what was asked for and raise SystemExit, if help was asked for. Raises: UsageError if there is no such section."""
    place = next((place for place, word in enumerate(words) if word.split("=")[0] in WORDS), None)
    if place is None:
        return
    _, mark, name = words[place].partition("=")
    if not mark:
        name = next((word for word in words[place + 1 :] if not word.startswith("-")), "")
    print(help_text(parser, name))
    raise SystemExit(0)


def help_text(parser: Parser, name: str) -> str:
    """name: of a section; "": a list of them."""
    if name == "all":
        return parser.format_help()
    sections = {group.title or "": group for group in parser._action_groups if group._group_actions}
    for common in COMMON:
        del sections[common]
    formatter = parser._get_formatter()
    if name:
        if name not in sections:
            parser.error(did_you_mean("section", name, [*sections, "all"]) + f" There are {', '.join(sections)}, all")
        formatter.start_section(name)
        formatter.add_arguments(sections[name]._group_actions)
        formatter.end_section()
        return formatter.format_help()
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    formatter.add_text(parser.description)
    lines = ["options by section, which `--help SECTION` explains, and `--help all` all of them:"]
    for title, group in sections.items():
        text = " ".join(action.option_strings[0].removeprefix("--") for action in group._group_actions)
        head, below = f"  {title:<10}", " " * 12
        lines += textwrap.wrap(text, WIDTH, break_on_hyphens=False, initial_indent=head, subsequent_indent=below)
    return "\n".join([formatter.format_help(), *lines, "", str(parser.epilog)])
