"""What `deployer init` recognises, and the file it writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.config.detect import Detected, detect, render
from deployer.config.load import load
from deployer.config.model import Ready
from deployer.errors import ConfigError

GUNICORN = "gunicorn -b fd://{fd} -w 1 -k gthread --threads 8"
MANAGE = "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\n"
DJANGO_WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
DJANGO_ASGI = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
CHANNELS = "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({})\n"


def tree(directory: Path, files: dict[str, str]) -> Detected:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return detect(directory)


@pytest.mark.parametrize(
    ("files", "kind", "program"),
    [
        ({"main.py": "from fastapi import FastAPI\napp = FastAPI()\n"}, "asgi", "main:app"),
        (
            {"pkg/web.py": "import starlette.applications as s\nsite: object = s.Starlette()\n"},
            "asgi",
            "pkg.web:site",
        ),
        ({"a.py": "from quart import Quart as Q\nif True:\n    app = Q('x')\n"}, "asgi", "a:app"),
        (
            {"a.py": "try:\n    from litestar import Litestar\nexcept ImportError: ...\napp = Litestar()\n"},
            "asgi",
            "a:app",
        ),
        ({"a.py": "async def app(scope, receive, send): ...\n"}, "asgi", "a:app"),
        ({"app.py": "from flask import Flask\napp = Flask(__name__)\n"}, "wsgi", "app:app"),
        ({"a.py": "def application(environ, start_response): ...\n"}, "wsgi", "a:application"),
        (
            {"shop/__init__.py": "def create_app(x=None):\n    from flask import Flask\n    return Flask('x')\n"},
            "wsgi",
            "shop:create_app()",
        ),
        (
            {"shop.py": "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()\n"},
            "asgi",
            "shop:create_app()",
        ),
        (
            {
                "shop/__init__.py": "import flask\ndef make_app():\n    return flask.Flask('x')\n",
                "shop/serve.py": "from . import make_app\nthe_app = make_app()\n",
            },
            "wsgi",
            "shop.serve:the_app",
        ),
        ({"main.py": "from starlette.applications import Starlette\napp = Starlette()\n"}, "asgi", "main:app"),
        (
            {"main.py": "from fastapi import FastAPI\nclass Shop(FastAPI): ...\napi: Shop = Shop()\n"},
            "asgi",
            "main:api",
        ),
        (
            {"main.py": "from flask import Flask\nclass Shop(Flask): ...\ndef create_app():\n    return Shop('x')\n"},
            "wsgi",
            "main:create_app()",
        ),
        (
            {
                "manage.py": MANAGE + "import django",
                "site1/wsgi.py": DJANGO_WSGI,
                "site1/asgi.py": DJANGO_ASGI,
                "site1/settings.py": "WSGI_APPLICATION = 'x'\nASGI_APPLICATION = 'site1.asgi.application'\n",
            },
            "django",
            "site1.asgi:application",
        ),
        ({"manage.py": MANAGE + "import django", "site1/asgi.py": DJANGO_ASGI}, "django", "site1.asgi:application"),
        ({"site1/wsgi.py": DJANGO_WSGI, "site1/asgi.py": DJANGO_ASGI}, "django", "site1.wsgi:application"),
        (
            {"src/shop/app.py": "import fastapi\napp = fastapi.FastAPI()\n"},
            "asgi",
            "shop.app:app",
        ),
        (
            {"manage.py": MANAGE + "import django", "site1/wsgi.py": DJANGO_WSGI, "site1/asgi.py": DJANGO_ASGI},
            "django",
            "site1.wsgi:application",
        ),
        (
            {"manage.py": MANAGE, "site1/wsgi.py": DJANGO_WSGI, "site1/asgi.py": CHANNELS},
            "django",
            "site1.asgi:application",
        ),
        (
            {"app.py": "from flask import Flask\napp = Flask(__name__)\n", "gunicorn.conf.py": "workers = 1\n"},
            "wsgi",
            f"{GUNICORN} app:app",
        ),
        (
            {
                "Procfile": "worker: x\nweb: A=1 gunicorn shop:app --bind 0.0.0.0:$PORT -w 2 'x y()'\n",
                "package.json": "{}",
            },
            "procfile",
            "gunicorn -b fd://{fd} shop:app -w 2 'x y()'",
        ),
        (
            {"Procfile": "web: uvicorn --host=0.0.0.0 --port ${PORT:-5000} m:app\n"},
            "procfile",
            "uvicorn --fd {fd} m:app",
        ),
        ({"Procfile": "web: ./serve --json={}\n"}, "procfile", "./serve --json={{}}"),
        ({"Procfile": "web: a && exec b\n"}, "procfile", "sh -c 'a && exec b'"),
        ({"package.json": '{"scripts": {"start": "NODE_ENV=production node x.js"}}'}, "node", "node x.js"),
        ({"package.json": '{"scripts": {"start": "tsx x.ts"}}'}, "node", "node_modules/.bin/tsx x.ts"),
        ({"package.json": '{"main": "x.js"}', "x.js": ""}, "node", "node x.js"),
    ],
)
def test_an_application_is_recognised_and_its_file_loads(
    tmp_path: Path, files: dict[str, str], kind: str, program: str
) -> None:
    """Python applications are served by deployer itself; a server of their own is kept."""
    detected = tree(tmp_path, files)
    assert (detected.kind, detected.command or detected.app) == (kind, program)
    path = tmp_path / "deployer.toml"
    path.write_text(render(detected, "My Shop"))
    config = load(path).config
    assert (config.worker.command, config.worker.app) == (detected.command, detected.app)
    assert (config.name, config.worker.env) == ("my-shop", dict(detected.env))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"package.json": '{"main": "gone.js"}', "broken.py": "def ("},
        {"package.json": "[1", "node_modules/a.py": "from flask import Flask\napp = Flask('x')\n"},
        {"tests/a.py": "from flask import Flask\napp = Flask('x')\n"},
        {"a.py": "from flask import Flask\ndef create_app(config):\n    return Flask('x')\n"},
        {"a.py": "from mine import Flask\napp = Flask()\n"},
        {"a.py": "from flask import Flask\nif __name__ == '__main__':\n    app = Flask('x')\n"},
        {"venv/pyvenv.cfg": "", "venv/a.py": "def application(environ, start_response): ...\n"},
        {"Procfile": "web: ruby serve.rb -p $PORT\n"},
    ],
)
def test_what_is_not_recognised_gives_a_file_that_says_what_to_fill_in(tmp_path: Path, files: dict[str, str]) -> None:
    detected = tree(tmp_path, files)
    assert detected.command is None
    path = tmp_path / "deployer.toml"
    path.write_text(render(detected, "shop"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.what == "deployer.toml:8: `command` in [worker] is empty"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("write what starts your app, e.g. ")


def test_a_procfile_wins_over_package_json_and_that_over_python(tmp_path: Path) -> None:
    python = {"app.py": "from flask import Flask\napp = Flask('x')\n"}
    assert tree(tmp_path, python).kind == "wsgi"
    assert tree(tmp_path, {"manage.py": MANAGE, "site1/wsgi.py": DJANGO_WSGI}).kind == "django"
    assert tree(tmp_path, {"package.json": '{"scripts": {"start": "node x.js"}}'}).kind == "node"
    assert tree(tmp_path, {"Procfile": "web: serve\n"}).kind == "procfile"


def test_the_shallow_well_named_object_is_the_likeliest(tmp_path: Path) -> None:
    source = "from flask import Flask\n{} = Flask('x')\n"
    files = {"deep/app.py": source.format("app"), "zoo.py": source.format("app"), "main.py": source.format("other")}
    assert tree(tmp_path, files).app == "main:other"


@pytest.mark.parametrize(
    ("file", "source", "route"),
    [
        ("main.py", "@app.get('/health')\n@app.get(\"/healthz\")\n", "/healthz"),
        ("main.py", "@app.get('/ping/')", "/ping/"),
        ("urls.py", "path('up/', view)", "/up/"),
        ("main.py", "x = 'health'", None),
        ("test_main.py", "get('/health')", None),
        ("main.py", "get('/healthy')", None),
    ],
)
def test_a_health_check_is_written_only_when_its_route_is_seen(
    tmp_path: Path, file: str, source: str, route: str | None
) -> None:
    detected = tree(tmp_path, {"app.py": "from flask import Flask\napp = Flask('x')\n", file: source})
    assert detected.health == route
    path = tmp_path / "deployer.toml"
    path.write_text(render(detected, "shop"))
    config = load(path).config
    assert (config.health.http, config.worker.readiness) == (route, Ready.NOTIFY)


def test_a_node_app_is_told_how_to_listen(tmp_path: Path) -> None:
    text = render(tree(tmp_path, {"package.json": '{"scripts": {"start": "node x.js"}}'}), "shop")
    assert "# The server must listen on the socket it inherits: server.listen({fd: 3})\n" in text
    assert '# env = { NODE_ENV = "production" }\n' in text


def test_nothing_of_the_application_is_run(tmp_path: Path) -> None:
    source = "open('touched', 'w')\nraise SystemExit\nfrom flask import Flask\napp = Flask('\\d')\n"
    assert tree(tmp_path, {"app.py": source}).app == "app:app"
    assert not (tmp_path / "touched").exists()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.text(min_size=1), st.text())
def test_any_detected_text_is_written_as_valid_toml(found: str, command: str, name: str) -> None:
    text = render(Detected("procfile", found, command, env=(("A", found),), notes=(found,)), name)
    parsed = tomllib.loads(text)
    assert parsed["worker"]["command"] == command
    assert parsed["worker"]["env"] == {"A": found}
