"""Makes a command of a verb's `run(session, ...)`: adds the options that every command takes.

They stand after the verb (`deployer status --json`), and a verb's own code never sees them: it gets a
`Session` that prints accordingly.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.main import get_command

from deployer.cli.interrupt import ReaderGone
from deployer.cli.output import Output, Style
from deployer.cli.session import Session
from deployer.errors import UsageError

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="deployer.toml, or the directory it is in.")
]
Json = Annotated[bool, typer.Option("--json", help="Print for programs: JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the bare result only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every step as a line of its own.")]

_GLOBAL: dict[str, Any] = {"config": Config, "json": Json, "quiet": Quiet, "verbose": Verbose}
_DEFAULTS: dict[str, Any] = {"config": None, "json": False, "quiet": False, "verbose": False}


def build(module: ModuleType, name: str) -> Any:
    """The command of a verb's module, whose `run` says what it takes and what it is for. A module with `VERBS` has
    verbs of its own below it (`deployer releases show v7`); `run` is then what it does without one."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    verbs: dict[str, Callable[..., int | None]] = getattr(module, "VERBS", {})
    if not verbs:
        app.command(name=name)(_with_global_options(module.run))
        return get_command(app)
    app.callback(invoke_without_command=True)(_unless_verb(_with_global_options(module.run)))
    for verb, run in verbs.items():
        app.command(name=verb)(_with_global_options(run))
    group = get_command(app)
    group.name = name
    return group


def open_session(config: Path | None, style: Style) -> Session:
    out = Output(sys.stdout, sys.stderr, os.environ, style)
    return Session(out, os.environ, config)


def _with_global_options(run: Callable[..., int | None]) -> Callable[..., int]:
    signature = inspect.signature(run, eval_str=True)
    _, *own = signature.parameters.values()
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=kind)
        for name, kind in _GLOBAL.items()
    ]

    @functools.wraps(run)
    def command(**given: Any) -> int:
        config = given.pop("config")
        style = Style(**{name: given.pop(name) for name in ("json", "quiet", "verbose")})
        try:
            return run(open_session(config, style), **given) or 0
        except BrokenPipeError as error:
            raise ReaderGone from error  # typer would end with code 1, which means a bug

    parameters = [*own, *extra]
    del command.__wrapped__  # typer would ask it for its parameters
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _unless_verb(command: Callable[..., int]) -> Callable[..., int]:
    """`command`, when no verb of its own follows; options of the verb stand after it."""

    def callback(context: typer.Context, **given: Any) -> int:
        if context.invoked_subcommand is None:
            return command(**given)
        if any(given.values()):
            raise UsageError(
                f"options stand after `{context.invoked_subcommand}`",
                hint=f"{context.command_path} {context.invoked_subcommand} --help",
            )
        return 0

    signature = inspect.signature(command)
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    callback.__doc__ = command.__doc__
    callback.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    callback.__annotations__ = {"context": typer.Context, **command.__annotations__}
    return callback
