"""What an application finds when it imports, and what it is told when it cannot be served."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployer.releases.served import lent
from tests.rawclient import Client
from tests.runtimekit import RUNTIME, Workers

Serve = Callable[..., Workers]
SHOP = """
import importlib.util, json, sys
{code}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    body = str(found()).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


def write(directory: Path, code: str) -> Path:
    (directory / "shop.py").write_text(SHOP.format(code=code))
    return directory


def check(directory: Path, app: str = "shop:app", python: str = sys.executable, *options: str) -> tuple[int, str]:
    """Exit code and output of --check."""
    done = subprocess.run(
        [python, RUNTIME, "--check", *options, app], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def page(workers: Workers) -> str:
    with Client(workers) as client:
        return client.get("/").body.decode()


def test_an_empty_environment_is_served_with_deployers_own_parts(
    serve: Serve, empty_python: str, tmp_path: Path
) -> None:
    """And sees nothing else of what deployer has installed, nor any directory of it on sys.path."""
    code = (
        "NAMES = ['msgspec', 'structlog', 'typer', 'starlette', 'psutil']\n"
        "def found():\n"
        "    seen = [name for name in NAMES if importlib.util.find_spec(name)]\n"
        "    return [seen, [path for path in sys.path if 'deployer' in path or 'rt/.venv' in path]]"
    )
    workers = serve("shop:app", directory=write(tmp_path, code), python=empty_python, options=lent())
    assert page(workers) == "[[], []]"


def test_a_wsgi_application_borrows_both_server_and_bridge(serve: Serve, empty_python: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '5')])\n"
        "    return [b'hello']\n"
    )
    assert page(serve("shop:app", directory=tmp_path, python=empty_python, options=lent())) == "hello"


def test_the_release_comes_first_and_the_runtime_is_not_on_the_path(serve: Serve, tmp_path: Path) -> None:
    """A module of the application may have the name of one of ours."""
    (tmp_path / "serve.py").write_text("name = 'mine'")
    (tmp_path / "api.py").write_text("name = 'mine too'")
    code = "import api, serve\ndef found():\n    return [sys.path[0], serve.name, api.name]"
    workers = serve("shop:app", directory=write(tmp_path, code))
    assert page(workers) == str([str(tmp_path), "mine", "mine too"])


@pytest.mark.parametrize("has_deployer", [True, False])
def test_the_api_is_there_with_and_without_an_installed_deployer(
    serve: Serve, empty_python: str, tmp_path: Path, has_deployer: bool
) -> None:
    code = (
        "import deployer.runtime as runtime\nfrom deployer.runtime import slot\n"
        "def found():\n    return [runtime.release(), slot(), len(runtime.peers()), runtime.api.worker.record is None]"
    )
    options: dict[str, Any] = {} if has_deployer else {"python": empty_python, "options": lent()}
    workers = serve("shop:app", directory=write(tmp_path, code), **options)
    assert page(workers) == "['v1', 1, 0, False]"


def test_an_application_keeps_its_own_package_called_deployer(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "deployer.py").write_text("name = 'mine'")
    code = "import deployer\ndef found():\n    return deployer.name"
    assert page(serve("shop:app", directory=write(tmp_path, code))) == "mine"


def test_an_environment_of_another_python_is_told_what_to_add(empty_python: str, tmp_path: Path) -> None:
    other = [word.replace(sys.implementation.cache_tag or "", "cpython-39") for word in lent()]
    write(tmp_path, "")
    code, said = check(tmp_path, "shop:app", empty_python, *other)
    assert code == 1
    assert "has no uvicorn, and deployer's own is for another Python (cpython-39" in said
    assert said.endswith("add uvicorn to its requirements\n")


def test_a_uvicorn_that_is_too_old_is_named(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "uvicorn").mkdir()
    (tmp_path / "uvicorn" / "__init__.py").touch()
    (tmp_path / "uvicorn-0.12.3.dist-info").mkdir()
    (tmp_path / "uvicorn-0.12.3.dist-info" / "METADATA").write_text("Name: uvicorn\nVersion: 0.12.3\n")
    code, said = check(tmp_path)
    assert (code, said.splitlines()[0][:78]) == (
        1,
        "error: the application has uvicorn 0.12.3, too old for deployer's runtime: chan",
    ) or "uvicorn>=0.23" in said


def test_the_check_says_what_the_application_is(tmp_path: Path) -> None:
    write(tmp_path, "def plain(environ, start_response): ...\nmake = lambda: app")
    assert check(tmp_path) == (0, "shop:app is an ASGI application (builtins)\n")
    assert check(tmp_path, "shop:plain")[1] == "shop:plain is a WSGI application (builtins)\n"
    assert check(tmp_path, "shop:make()")[0] == 0


def test_a_failed_import_shows_the_applications_own_traceback_only(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("raise ValueError('no such column')\n")
    write(tmp_path, "import models")
    code, said = check(tmp_path)
    assert code == 1
    assert said.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/shop.py", line 3, in <module>',
        "    import models",
        f'  File "{tmp_path}/models.py", line 1, in <module>',
        "    raise ValueError('no such column')",
        "ValueError: no such column",
    ]


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("shopp:app", "error: no module named 'shopp' in "),
        ("shop:ap", "error: module 'shop' has no 'ap' ("),
        ("shop:sys", "error: shop has it, but it is not an application: module objects cannot be called"),
        ("shop:nothing", "a factory is written with parentheses: module:factory()"),
        ("shop:broken()", "ZeroDivisionError: division by zero\n(while calling shop:broken())"),
    ],
)
def test_what_is_wrong_with_the_name_is_said(tmp_path: Path, app: str, text: str) -> None:
    write(tmp_path, "def nothing(): ...\ndef broken(): 1 / 0")
    code, said = check(tmp_path, app)
    assert code == 1
    assert text in said
    assert "deployer/runtime" not in said


def test_a_syntax_error_is_shown_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "def (")
    code, said = check(tmp_path)
    assert (code, "runtime" in said) == (1, False)
    assert f'File "{tmp_path}/shop.py", line 3' in said


def test_a_worker_that_is_stopped_while_it_boots_says_nothing(tmp_path: Path) -> None:
    """By SIGINT, too: a KeyboardInterrupt would show frames of ours."""
    (tmp_path / "shop.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, RUNTIME, "shop:app"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signal.SIGINT, b"")
