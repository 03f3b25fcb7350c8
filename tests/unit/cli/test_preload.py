"""`deployer check --preload`: the application is imported as a worker would, and what is wrong is its own traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_shop import Result, Shop

STARLETTE = "from starlette.applications import Starlette\napp = Starlette()\n"
FLASK = "from flask import Flask\ndef create_app():\n    return Flask('x')\n"
RAISES = "import helper\n\ndef setup():\n    raise RuntimeError('no DATABASE_URL')\n\nsetup()\napp = None\n"


def write(shop: Shop, source: str, app: str = "shop:app", extra: str = "") -> None:
    (shop.directory / "deployer.toml").write_text(
        f'name = "shop"\n[worker]\napp = "{app}"\n{extra}\n[[listen]]\naddress = "unix:app.sock"\n'
    )
    (shop.directory / "shop.py").write_text(source)
    (shop.directory / "helper.py").write_text("")


def found(result: Result) -> dict[str, Any]:
    checks: list[dict[str, Any]] = json.loads(result.out)["checks"]
    return next(check for check in checks if check["subject"] == "preload")


@pytest.mark.parametrize(
    ("source", "app", "text"),
    [
        (STARLETTE, "shop:app", "shop:app is an ASGI application (starlette.applications)"),
        (FLASK, "shop:create_app()", "shop:create_app() is a WSGI application (flask.app)"),
        ("print('hello')\n" + STARLETTE, "shop:app", "shop:app is an ASGI application (starlette.applications)"),
    ],
)
def test_a_good_one_is_named_with_its_interpreter(shop: Shop, source: str, app: str, text: str) -> None:
    write(shop, source, app)
    result = shop.run("check", "--preload")
    assert result.code == 0, result.out
    assert f"ok      preload  {text}; imported by {sys.executable}\n" in result.out
    assert not (shop.directory / "__pycache__").exists(), "nothing is left behind"
    check = found(shop.run("check", "--preload", "--json"))
    assert (check["state"], check["interpreter"], check["output"]) == ("ok", sys.executable, [])


def test_an_import_error_is_shown_with_the_applications_own_traceback_only(shop: Shop) -> None:
    write(shop, RAISES)
    result = shop.run("check", "--preload")
    assert result.code == 78
    assert "problem preload  shop:app cannot be imported: RuntimeError: no DATABASE_URL; imported by " in result.out
    file = shop.directory / "shop.py"
    assert [line[4:] for line in result.out.splitlines() if line.startswith("  │")] == [
        "Traceback (most recent call last):",
        f'  File "{file}", line 6, in <module>',
        "    setup()",
        f'  File "{file}", line 4, in setup',
        "    raise RuntimeError('no DATABASE_URL')",
        "RuntimeError: no DATABASE_URL",
    ]
    check = found(shop.run("check", "--preload", "--json"))
    assert (check["state"], check["output"][-1]) == ("bad", "RuntimeError: no DATABASE_URL")


@pytest.mark.parametrize(
    ("source", "app", "text"),
    [
        ("app = 7\n", "shop:app", "shop has it, but it is not an application: int objects cannot be called"),
        ("def create_app(): ...\n", "shop:app", "module 'shop' has no 'app'"),
        ("aap = 1\n", "shop:app", "did you mean 'aap'?"),
        ("", "shop2:app", "no module named 'shop2' in "),
        ("import sys; sys.exit(4)\n", "shop:app", "cannot be imported: it ended the process with exit code 4"),
        ("import os; os.kill(os.getpid(), 9)\n", "shop:app", "cannot be imported: SIGKILL ended its process"),
        ("import nothing_of_this_name\n", "shop:app", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def app(:\n", "shop:app", "SyntaxError: invalid syntax"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(shop: Shop, source: str, app: str, text: str) -> None:
    write(shop, source, app)
    result = shop.run("check", "--preload", "--json")
    check = found(result)
    assert (result.code, check["state"]) == (78, "bad")
    assert text in check["text"]
    assert "deployer/runtime" not in "\n".join(check["output"])


def test_what_a_template_needs_is_checked_too(shop: Shop) -> None:
    """The hook's name; and what would not survive a fork, also when it would keep the interpreter."""
    preload = "preload = true\npost_fork = 'shop:{}'"
    write(shop, STARLETTE + "def forked(): raise SystemExit('not called')\n", extra=preload.format("forked"))
    result = shop.run("check", "--preload")
    assert (result.code, "one by one" in result.out) == (0, False), result.out
    write(shop, STARLETTE, extra=preload.format("forked"))
    assert "module 'shop' has no 'forked'" in found(shop.run("check", "--preload", "--json"))["text"]
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='tick').start()\n"
    write(shop, STARLETTE + thread, extra="preload = true")
    check = found(shop.run("check", "--preload", "--json", timeout=50))
    assert "its workers boot one by one: thread 'tick' would not survive a fork; imported by" in check["text"]
    write(shop, STARLETTE + thread)
    assert "one by one" not in found(shop.run("check", "--preload", "--json", timeout=50))["text"]


def test_an_import_that_hangs_is_ended_and_shows_where_it_hangs(shop: Shop) -> None:
    """With what it started itself; frames of ours are not among the stacks."""
    source = (
        "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '1000'])\n"
        "open('pid', 'w').write(str(child.pid))\ndef wait_for_the_database():\n    time.sleep(1000)\n"
        "wait_for_the_database()\n"
    )
    write(shop, source, extra='ready_timeout = "1500ms"')
    began = time.monotonic()
    result = shop.run("check", "--preload", timeout=60)
    assert result.code == 78
    assert "its import did not end within 1500ms" in result.out
    assert "in wait_for_the_database" in result.out
    assert "deployer/runtime" not in result.out
    assert "importlib" not in result.out
    assert time.monotonic() - began < 50
    pid = int((shop.directory / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


def test_the_workers_environment_and_directory_are_there(shop: Shop) -> None:
    source = (
        "import os\nassert os.getcwd() == os.path.dirname(os.path.abspath(__file__))\n"
        "assert (os.environ['COLOUR'], os.environ['TOKEN']) == ('blue', 'abc')\n"
        "assert os.environ['DEPLOYER_APP'] == 'shop' and 'DEPLOYER_SCOREBOARD' not in os.environ\n"
        "import deployer.runtime\nassert deployer.runtime.release() is not None\n" + STARLETTE
    )
    write(shop, source, extra='env = { COLOUR = "blue" }\nenv_file = ["secrets.env"]')
    result = shop.run("check", "--preload")
    assert (result.code, "secrets.env: there is no such file" in result.out) == (78, True)
    (shop.directory / "secrets.env").write_text("TOKEN=abc\n")
    result = shop.run("check", "--preload")
    assert result.code == 0, result.out


def test_what_cannot_be_imported_here_is_said(shop: Shop) -> None:
    (shop.directory / "deployer.toml").write_text(
        'name = "shop"\n[worker]\ncommand = "true"\n[[listen]]\naddress = "unix:app.sock"\n'
    )
    result = shop.run("check", "--preload")
    assert (result.code, result.err.startswith("error: --preload imports the application of [worker] app")) == (2, True)
    write(shop, STARLETTE)
    with open(shop.directory / "deployer.toml", "a") as file:
        file.write('[source]\ngit = "https://example.com/x.git"\n')
    check = found(shop.run("check", "--preload", "--json"))
    assert (check["state"], check["text"]) == ("warn", "there is no directory of the source here to import it from")


def test_an_environment_that_is_not_built_is_said(shop: Shop) -> None:
    write(shop, STARLETTE)
    (shop.directory / "requirements.txt").write_text("starlette\n")
    with open(shop.directory / "deployer.toml", "a") as file:
        file.write('[build]\npython = "uv"\n')
    result = shop.run("check", "--preload")
    assert result.code == 0
    assert "deployer's own Python: the environment of requirements.txt is not built yet" in result.out


FASTAPI = "from fastapi import FastAPI\nclass Api(FastAPI): ...\ndef create_app(debug=False):\n    return Api()\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (STARLETTE, "shop:app is an ASGI application (starlette.applications)"),
        ("from fastapi import FastAPI\napp = FastAPI()\n", "shop:app is an ASGI application (fastapi.applications)"),
        (FASTAPI, "shop:create_app() is an ASGI application (shop)"),
        ("from flask import Flask\napp = Flask(__name__)\n", "shop:app is a WSGI application (flask.app)"),
        (FLASK, "shop:create_app() is a WSGI application (flask.app)"),
    ],
)
def test_what_init_detects_can_be_served(shop: Shop, source: str, text: str) -> None:
    (shop.directory / "deployer.toml").unlink()
    (shop.directory / "shop.py").write_text(source)
    assert shop.run("init").code == 0
    check = found(shop.run("check", "--preload", "--json"))
    assert check["text"].startswith(text)


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_django_project_as_it_is_made(shop: Shop, kind: str) -> None:
    (shop.directory / "deployer.toml").unlink()
    django = [sys.executable, "-m", "django", "startproject", "site1", "."]
    subprocess.run(django, cwd=shop.directory, check=True, env=os.environ)
    if kind == "asgi":
        with open(shop.directory / "site1" / "settings.py", "a") as file:
            file.write("ASGI_APPLICATION = 'site1.asgi.application'\n")
    assert shop.run("init").code == 0
    check = found(shop.run("check", "--preload", "--json"))
    article = "an ASGI" if kind == "asgi" else "a WSGI"
    assert check["text"].startswith(f"site1.{kind}:application is {article} application (django.core.handlers.{kind})")
