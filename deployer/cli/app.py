"""The `deployer` command: finds the verb, runs it, and turns whatever goes wrong into words and a code.

A verb's module is imported when the verb is used, so that `deployer status` pays for `status` alone and
`deployer --help` for nothing but typer.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from deployer import __version__
from deployer.cli import github
from deployer.cli.interrupt import Interrupted, ReaderGone, ignore_signals, raise_on_signals
from deployer.cli.output import Output, Style, devnull
from deployer.errors import DeployerError, Exit, UsageError
from deployer.wire.schema import Problem

VERBS = {
    "init": "Write a deployer.toml for the application in this directory.",
    "check": "Look whether the configuration and this machine are fit for a deploy.",
    "up": "Start the cluster, and deploy when there is no release yet.",
    "down": "Stop the workers and the supervisor.",
    "watch": "Put every save live as a deploy would; what is broken stays out.",
    "deploy": "Put a new release live, one worker at a time; go back if it fails.",
    "pack": "Make an artifact of a directory, to be deployed elsewhere.",
    "rollback": "Go back to an earlier release.",
    "follow": "Watch a rollout that runs, or see how the last one went.",
    "status": "Show what serves now.",
    "releases": "List the releases, newest first.",
    "diff": "Show what differs between two releases.",
    "history": "List the rollouts, newest first.",
    "events": "Show what happened, event by event.",
    "logs": "Show what the workers wrote.",
    "scale": "Change the number of workers.",
    "restart": "Replace every worker by a new one of the same release.",
}
EPILOG = "Every command takes --config, --json, --quiet and --verbose after its name, and explains itself by --help."
AFTER_THE_VERB = ("--config", "--json", "--quiet", "-q", "--verbose", "-v")
BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


class LazyGroup(TyperGroup):
    """Knows the verbs by name and what they are for; imports a module for the one that is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        build = import_module("deployer.cli.command").build
        return build(import_module(f"deployer.cli.{cmd_name}"), cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, n=1)
            raise UsageError(
                f'there is no command "{name}"',
                cause=f'the nearest one is "{near[0]}"' if near else None,
                hint=f"deployer {near[0]}" if near else "deployer --help",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def deployer(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Zero-downtime deploys: one worker at a time, halted and put back at the first crash."""
    if version:
        print(f"deployer {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code of DESIGN.md comes back."""
    arguments = sys.argv[1:] if arguments is None else arguments
    raise_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    style = Style(json="--json" in arguments)
    out = Output(sys.stdout, sys.stderr, os.environ, style)
    try:
        code = _run(arguments, out)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        devnull(sys.stdout)
        devnull(sys.stderr)
        return BROKEN_PIPE
    return code


def _run(arguments: list[str], out: Output) -> int:
    try:
        return int(get_command(app).main(arguments, prog_name="deployer", standalone_mode=False) or 0)
    except DeployerError as error:
        return _report(error, out)
    except typer.TyperException as error:
        return _report(_usage(error), out)
    except Interrupted as interrupted:
        ignore_signals()
        if not interrupted.told:
            out.tell("interrupted")
        return int(interrupted.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:
        if out.env.get("DEPLOYER_DEBUG") == "1":
            sys.__excepthook__(type(error), error, error.__traceback__)
        return _report(_bug(error), out)


def _report(error: DeployerError, out: Output) -> int:
    out.error(error)
    if out.github:
        github.annotate_error(out, error)
    if out.style.json:
        code = int(error.exit_code)
        problem = Problem(what=error.what, cause=error.cause, hint=error.hint, exit=code, reason=error.reason)
        out.result_json({"error": problem})
    return int(error.exit_code)


def _usage(error: typer.TyperException) -> UsageError:
    """typer's own complaint in our form; its context knows which command was meant."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "deployer"
    option = getattr(error, "option_name", None)
    if path == "deployer" and option in AFTER_THE_VERB:
        return UsageError(
            f"{option} stands after the command's name", hint=f"deployer {_first_verb(sys.argv)} {option}"
        )
    near = getattr(error, "possibilities", None)
    text = (error.message if near else error.format_message()).rstrip(".")
    cause = f'the nearest one is "{near[0]}"' if near else None
    return UsageError(text[:1].lower() + text[1:], cause=cause, hint=f"{path} --help")


def _first_verb(words: list[str]) -> str:
    return next((word for word in words if word in VERBS), "status")


def _bug(error: Exception) -> DeployerError:
    return DeployerError(
        f"{type(error).__name__}: {error} (a bug)",
        cause="deployer itself failed; nothing that runs was touched by that",
        hint="DEPLOYER_DEBUG=1 deployer ...",
        reason="bug",
    )
