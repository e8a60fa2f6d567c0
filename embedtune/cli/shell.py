"""What all commands share: exit codes, errors of one line, ``--config``, ``--debug``, and what goes to which stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from embedtune.text import printable

if TYPE_CHECKING:
    from embedtune.evaluation.headline import Headline

DONE, FAILED, KEEP, CANNOT_TELL, INTERRUPTED = 0, 1, 3, 4, 130  # 2 is the library's own, for wrong usage

WIDTH = 80
_LABEL = 11

_GO_ON = {
    "tune": "Run the same command again to go on. What is paid for and what is finished is kept.",
    "improve": "The retriever that serves is as it was. Run the same command again to start a new round.",
}


class Commands(TyperGroup):
    """Commands whose errors are one line, and that say how to go on after Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn what stops it into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # of the library, and RuntimeErrors
            raise
        except KeyboardInterrupt as err:
            say(f"Stopped. {_GO_ON.get(ctx.invoked_subcommand, '')}".strip())
            raise typer.Exit(INTERRUPTED) from err
        except (ValueError, OSError, RuntimeError, ImportError) as err:
            if ctx.meta.get("debug"):
                raise
            say(f"Error: {' '.join(str(err).split()) or type(err).__name__}")
            raise typer.Exit(FAILED) from err


def say(text: str) -> None:
    """Tell the person something, beside the result."""
    typer.echo(printable(text), err=True)


@contextmanager
def working() -> Iterator[None]:
    """Send what libraries print to standard error, such as a trainer's log: standard output holds the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def show(text: str, content: Mapping[str, Any] | list[Any], *, as_json: bool) -> None:
    """Print a result, as text or as JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else printable(text))


def rows_text(rows: Mapping[str, str]) -> str:
    """Return labels and texts in two columns of 80 characters.

    Example:
        >>> print(rows_text({"Output": "out"}))
        Output     out
    """
    return "\n".join(
        fill(
            text, WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=" " * _LABEL,
            break_long_words=False, break_on_hyphens=False,
        )
        for label, text in rows.items()
    )  # fmt: skip


def agree(question: str) -> None:
    """Ask for a yes on the terminal, and stop without one."""
    typer.echo(f"{question} [y/N] ", nl=False, err=True)  # typer.confirm would write to standard output, too
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        unanswered = "" if answer else "\nNobody answered; pass --yes to agree beforehand. "
        say(f"{unanswered}Nothing was sent, and nothing written.")
        raise typer.Exit(FAILED)


def exit_code(headline: Headline) -> int:
    """Return the exit code that tells a script what a person reads in the headline."""
    return {"ship it": DONE, "keep what you have": KEEP, "cannot tell yet": CANNOT_TELL}[headline]


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a YAML file as defaults, which options on the command line override."""
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise typer.BadParameter(f"{path} cannot be read: {' '.join(str(err).split())}") from err
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} must have a line `option: value` for each option, as `epochs: 3`.")
    names = {option.lstrip("-"): one.name for one in ctx.command.params for option in [one.name or "", *one.opts]}
    known = {name: target for name, target in names.items() if target not in ("config", "help") and len(name) > 1}
    found = {str(name).replace("_", "-"): value for name, value in content.items()}
    known = {name.replace("_", "-"): target for name, target in known.items()}
    if unknown := sorted(found.keys() - known.keys()):
        raise typer.BadParameter(f"{path} has the option {unknown[0]!r}. Choose from: {', '.join(sorted(known))}.")
    ctx.default_map = {str(known[name]): value for name, value in found.items()}
    return path


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    """Remember for `Commands.invoke` that the whole error is wanted."""
    ctx.meta["debug"] = ctx.meta.get("debug") or value
    return value


def excerpt_text(text: str) -> str:
    """Return the beginning of a text, on at most three lines."""
    return "\n".join(wrap(" ".join(text.split()), WIDTH - 3, max_lines=3, placeholder=" ..."))
