"""`deployer init`: a first deployer.toml, with what could be detected filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployer.cli.output import clean
from deployer.cli.session import Session
from deployer.config.detect import detect, render
from deployer.config.load import FILE_NAME
from deployer.errors import DeniedError, UsageError


def run(
    session: Session,
    name: Annotated[str | None, typer.Option("--name", help="The application's name; else the directory's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a deployer.toml that is there.")] = False,
) -> int:
    """Write a deployer.toml for the application in this directory.

    Looks for WSGI and ASGI applications, a Procfile and package.json; what it cannot tell is left as a
    comment to fill in.
    """
    path = _target(session.config)
    detected = detect(path.parent)
    _write(path, render(detected, name or path.parent.name), force)
    out = session.out
    if out.style.json:
        out.result_json({"file": str(path), "found": detected.found})
    else:
        out.result(str(path) if out.style.quiet else f"wrote {path}")
        out.note(clean(detected.found))
        out.note("next: deployer check && deployer up")
    return 0


def _target(config: Path | None) -> Path:
    path = Path.cwd() / FILE_NAME if config is None else config.absolute()
    return path / FILE_NAME if path.is_dir() else path


def _write(path: Path, text: str, force: bool) -> None:
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path} exists already", cause="init does not overwrite it unless told so", hint="deployer init --force"
        ) from None
    except OSError as error:
        raise DeniedError(f"{path} cannot be written", cause=error.strerror) from error
