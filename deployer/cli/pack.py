"""`deployer pack`: an artifact, made once in CI and deployed anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployer.cli.output import clean
from deployer.cli.session import Session
from deployer.config.load import FILE_NAME, load
from deployer.config.rules import slug
from deployer.errors import UsageError
from deployer.releases.envfiles import leave_out
from deployer.releases.pack import pack
from deployer.releases.request import Directory
from deployer.units import format_size


def run(
    session: Session,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="The directory; else that of [source].")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .tar.gz to make.")] = None,
) -> int:
    """Make an artifact of a directory, to be deployed elsewhere.

    The .tar.gz is the same wherever it is made. Left out is what a deploy of the directory leaves out
    (.gitignore, `exclude`, an env_file). The digest is printed and written to FILE.sha256; deploy it with:
    deployer deploy FILE, or a URL and --sha256.
    """
    name, source, root = _what(session, path)
    if not Path(source.path).is_dir():
        raise UsageError(f"{source.path}: no such directory", hint="deployer pack .")
    packed = pack(source, root, name, output, session.out.note)
    manifest, out = packed.manifest, session.out
    if out.style.json:
        told = {"file": str(packed.file.absolute()), "sha256": packed.sha256, "tree_digest": manifest.tree_digest}
        out.result_json(told | {"commit": manifest.commit, "files": manifest.files, "bytes": manifest.bytes})
    else:
        out.result(packed.sha256 if out.style.quiet else f"{packed.sha256}  {packed.file}")
        changed = ", with changes that are not committed" if manifest.changed else ""
        commit = f", commit {manifest.commit[:9]} {manifest.subject}{changed}" if manifest.commit else ""
        out.note(clean(f"{manifest.files} files, {format_size(packed.file.stat().st_size)} packed{commit}"))
    return 0


def _what(session: Session, path: Path | None) -> tuple[str, Directory, Path]:
    """Name, directory and ROOT; deployer.toml gives them where there is one, and is not needed."""
    place = (path or Path.cwd()).expanduser().absolute()
    explicit = session.config is not None
    file = session.file if explicit or (path is None and (place / FILE_NAME).is_file()) else place / FILE_NAME
    if not file.is_file() and not explicit:
        return slug(place.name), Directory(path=str(place)), place / ".deployer"
    loaded = load(file)
    source = loaded.config.source
    directory = place if path is not None else loaded.source_dir or loaded.directory
    whole = Directory(path=str(directory), include=source.include, exclude=source.exclude)
    taken = leave_out(whole, loaded.config, loaded.directory, loaded.root, session.out.note)
    return loaded.config.name, taken, loaded.root
