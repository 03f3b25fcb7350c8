"""`deployer check --preload`: imports the application as a worker would, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deployer.config.environment import freeze
from deployer.config.load import FILE_NAME, Loaded, overlay
from deployer.config.model import Config
from deployer.errors import DeployerError
from deployer.releases import python, served
from deployer.releases.process import die_with_parent
from deployer.releases.release import activate, base_environment
from deployer.units import parse_duration

OUTPUT_BYTES = 64 * 1024  # the end of what the application prints
DUMP_S = 2.0  # to print where an import hangs
_RUNTIME = re.escape(os.path.dirname(served.RUNTIME))
_OURS = re.compile(rf'  File "({_RUNTIME}|<frozen importlib|.*/importlib/__init__\.py")')


@dataclass(frozen=True)
class Preloaded:
    """What became of the import; `output` is what the application's side printed, or its traceback."""

    ok: bool
    text: str
    interpreter: str
    output: tuple[str, ...] = ()
    hint: str | None = None


def preload(loaded: Loaded, env: Mapping[str, str]) -> Preloaded:
    """Import the application in the source directory. DeployerError: its configuration or environment is wrong."""
    assert loaded.source_dir is not None
    config = overlay(loaded.config, loaded.source_dir / FILE_NAME)
    environment, note = _environment(config, loaded)
    own = {
        "DEPLOYER_APP": config.name,
        "DEPLOYER_RELEASE": "v0",  # as the preflight's worker has slot 0: none there is
        "DEPLOYER_WORKER": "0",
        "DEPLOYER_ROOT": str(loaded.root),
        "PYTHONDONTWRITEBYTECODE": "1",  # a check leaves nothing behind
    }
    frozen = freeze(config, loaded.directory)
    worker_env = activate({**base_environment(env), **frozen}, environment) | own
    limit_s = parse_duration(config.worker.ready_timeout)
    code, out, err = _run(served.check(config.worker, environment), loaded.source_dir, worker_env, limit_s)
    where = served.interpreter(environment)
    by = f"imported by {where}{note}"
    hint = f"the build makes another environment: {HINT}" if note and code else None
    if code is None:
        text = f"{config.worker.app}: its import did not end within {config.worker.ready_timeout}; {by}"
        return Preloaded(False, text, where, _theirs(err), "raise [worker] ready_timeout if it only is slow")
    if code == 0 and out:
        return Preloaded(True, f"{out[-1]}; {by}", where)
    return Preloaded(False, f"{_what(config.worker.app, code, err)}; {by}", where, _theirs(err), hint)


HINT = "deployer deploy --dry-run shows what is deployed, a deploy builds it and starts no worker that fails"


def _environment(config: Config, loaded: Loaded) -> tuple[Path | None, str]:
    """The environment that a release of this directory would have, when it is built; else None, and why."""
    tool = config.build.python
    if tool == "none":
        return None, ""
    assert loaded.source_dir is not None
    envs = loaded.root / "envs"
    try:
        planned = python.plan(loaded.source_dir, tool, envs)
    except DeployerError as error:
        return None, f", deployer's own Python: {error.what}"
    if planned.is_whole(envs):
        return envs / planned.name, ""
    return None, f", deployer's own Python: the environment of {planned.lock.name} is not built yet"


def _run(
    argv: list[str], directory: Path, env: Mapping[str, str], limit_s: float
) -> tuple[int | None, list[str], list[str]]:
    """(exit code, lines of stdout, lines of stderr); the code is None when it took too long. Into files: who holds a
    pipe open cannot make us wait, and who prints without end fills no memory of ours."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv,
            cwd=directory,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        code: int | None = None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # the runtime prints where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DUMP_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return code, _tail(out), _tail(err)


def _tail(file: IO[bytes]) -> list[str]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT_BYTES))
    return file.read().decode("utf-8", "replace").splitlines()


def _theirs(lines: list[str]) -> tuple[str, ...]:
    """Without frames of ours, which only the stacks of a hard crash (faulthandler) have."""
    return tuple(line for line in lines if not _OURS.match(line) and not line.startswith("error: "))


def _what(app: str | None, code: int, err: list[str]) -> str:
    said = next((line for line in reversed(err) if line.strip() and not line.startswith("(while calling")), "")
    if said.startswith("error: "):
        return f"{app}: {said.removeprefix('error: ')}"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"{app} cannot be imported: {signal.Signals(-code).name} ended its process"
    return f"{app} cannot be imported: {said or f'it ended the process with exit code {code}'}"
