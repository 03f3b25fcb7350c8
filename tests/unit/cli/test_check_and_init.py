"""`deployer check` and `deployer init`: what a newcomer types first."""

from __future__ import annotations

import json
import os
import socket

import pytest
from cli_shop import Shop
from scripted_manager import ScriptedManager, status


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write(shop: Shop, *, command: str = "true", address: str = "", source: str = "") -> None:
    address = address or f"tcp://127.0.0.1:{free_port()}"
    text = f'name = "shop"\n[worker]\ncommand = "{command}"\n[[listen]]\naddress = "{address}"\n'
    (shop.directory / "deployer.toml").write_text(text + (f"[source]\n{source}\n" if source else ""))


def findings(shop: Shop, *words: str) -> dict[str, dict[str, str]]:
    result = shop.run("check", "--json", *words)
    data = json.loads(result.out)
    assert data["ok"] is (result.code == 0)
    return {finding["subject"]: finding for finding in data["checks"]}


def test_everything_in_order(shop: Shop) -> None:
    write(shop)

    result = shop.run("check")

    assert result.code == 0
    assert [line.split()[:3] for line in result.out.splitlines()] == [
        ["✔", "ok", subject] for subject in ("config", "command", "listen", "source", "root", "disk")
    ]
    assert shop.run("check", "-q").out == ""


def test_a_port_in_use_names_the_process(shop: Shop) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        write(shop, address=f"tcp://127.0.0.1:{sock.getsockname()[1]}")

        result = shop.run("check")

    assert result.code == 78
    assert f"is in use by pid {os.getpid()} (" in result.out
    assert "✖ problem listen" in result.out


def test_an_address_that_our_own_cluster_serves_is_fine(manager: ScriptedManager, shop: Shop) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        write(shop, address=address)
        manager.answers["GET /v1/status"] = 200, status(listen=[address])

        found = findings(shop)

    assert found["listen"] == {
        "state": "ok",
        "subject": "listen",
        "text": f"{address} is served by this cluster",
        "hint": None,
    }
    assert found["cluster"]["text"] == "runs, serves v7"


def test_a_unix_address_is_tried_and_not_left_behind(shop: Shop) -> None:
    write(shop, address="unix:run/app.sock")
    (shop.directory / "run").mkdir()

    assert findings(shop)["listen"]["state"] == "ok"
    assert list((shop.directory / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("no-such-program --x", "no-such-program: no such program on PATH"),
        ("./bin/serve", "bin/serve: no such program"),
        ("./plain", "plain is not executable"),
    ],
)
def test_a_command_that_cannot_run_is_found(shop: Shop, command: str, text: str) -> None:
    (shop.directory / "plain").write_text("")
    write(shop, command=command)

    found = findings(shop)["command"]

    assert found["state"] == "bad"
    assert found["text"].endswith(text)


def test_a_source_that_is_not_there_is_found(shop: Shop) -> None:
    write(shop, source='path = "gone"')
    assert findings(shop)["source"]["text"] == f"{shop.directory}/gone: no such directory"

    write(shop, source='git = "gone.git"')
    assert findings(shop)["source"]["text"] == f"{shop.directory}/gone.git: no such repository"

    write(shop, source='git = "https://host/x.git"\nref = "main"')
    assert findings(shop)["source"]["state"] == "ok"


def test_a_configuration_that_is_wrong_is_one_clear_error(shop: Shop) -> None:
    (shop.directory / "deployer.toml").write_text('name = "shop"\n[worker]\ncommandd = "true"\n')

    result = shop.run("check")

    assert result.code == 78
    assert result.err.startswith("error: deployer.toml:3: ")
    assert "command" in result.err


def test_init_writes_a_file_that_check_can_read(shop: Shop) -> None:
    (shop.directory / "deployer.toml").unlink()
    (shop.directory / "Procfile").write_text("web: true\n")

    result = shop.run("init", "--name", "my-shop")

    assert (result.code, result.out) == (0, f"wrote {shop.directory}/deployer.toml\n")
    assert result.err.endswith("next: deployer check && deployer up\n")
    assert 'name = "my-shop"' in (shop.directory / "deployer.toml").read_text()
    assert findings(shop)["config"]["state"] == "ok"


def test_init_does_not_overwrite_unless_forced(shop: Shop) -> None:
    before = (shop.directory / "deployer.toml").read_text()

    refused = shop.run("init")
    after = (shop.directory / "deployer.toml").read_text()
    forced = shop.run("init", "--force", "--json")

    assert (refused.code, after) == (2, before)
    assert refused.err == (
        f"error: {shop.directory}/deployer.toml exists already\n"
        "cause: init does not overwrite it unless told so\n"
        "hint: deployer init --force\n"
    )
    assert forced.code == 0
    assert json.loads(forced.out)["file"] == f"{shop.directory}/deployer.toml"


def test_an_app_is_checked_and_written(shop: Shop) -> None:
    (shop.directory / "main.py").write_text("from starlette.applications import Starlette\napp = Starlette()\n")
    (shop.directory / "deployer.toml").unlink(missing_ok=True)
    assert shop.run("init").code == 0
    assert 'app = "main:app"' in (shop.directory / "deployer.toml").read_text()
    assert findings(shop)["app"]["text"] == "main:app, served by deployer's own runtime"
