"""A package from an index: wheels made by hand, served on the loopback, installed by the real pip."""

from __future__ import annotations

import base64
import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stagekit import Stager

from deployer.releases.request import Package

TOKEN = "t0ps3cret"  # nobody's


class _Index(http.server.SimpleHTTPRequestHandler):
    """Answers only who has the token."""

    def log_message(self, *args: object) -> None:
        """Not into the tests' output."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(f"ci:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """Its URL, with the token as a variable."""
    top = tmp_path / "index"
    for name, version, needs in (("shop", "1.2", "parts"), ("shop", "1.3", "parts"), ("parts", "1.0", None)):
        wheel(top / "simple" / name, name, version, needs)
    handler = functools.partial(_Index, directory=str(top))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://ci:${{INDEX_TOKEN}}@127.0.0.1:{server.server_port}/simple/"
        server.shutdown()
        thread.join()


def wheel(directory: Path, name: str, version: str, needs: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        f"{name}/__main__.py": (
            f"import {needs or name}\nfrom {name} import VERSION\n\n\ndef main():\n    print(VERSION)\n\n\nmain()\n"
        ),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-run = {name}.__main__:main\n",
    }
    records = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": records}.items():
            archive.writestr(path, text)


def test_a_package_is_installed_and_runs(stager: Stager, index: str) -> None:
    """Modules and console scripts are found by what the release's environment says; the token is told nowhere."""
    stager.env["INDEX_TOKEN"] = TOKEN
    done = stager.run(Package(requirement="shop==1.2", index_url=index))
    assert done.result is not None, done.error
    env = {**os.environ, **done.result["env"]}
    for command in ([sys.executable, "-m", "shop"], ["shop-run"]):
        ran = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=True)
        assert ran.stdout.split()[0] == "1.2"
    assert done.result["source"].startswith("package shop==1.2 from http://")
    assert TOKEN not in str(done)
    for path in stager.layout.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    again = stager.run(Package(requirement="shop==1.3", index_url=index), "v2")
    assert again.exit == 0
    shared = "parts/__init__.py"
    assert (stager.release("v1") / shared).stat().st_ino == (stager.release("v2") / shared).stat().st_ino
    stager.assert_nothing_left(releases=("v1", "v2"))


def test_what_cannot_be_installed(stager: Stager, index: str) -> None:
    """No such version, no token, a wrong one, a range, plain http: each says so, and nothing is left."""
    assert "needs the variable INDEX_TOKEN" in stager.run(Package(requirement="shop==1.2", index_url=index)).told
    stager.env["INDEX_TOKEN"] = TOKEN
    unknown = stager.run(Package(requirement="shop==9.9", index_url=index))
    assert unknown.exit == 6
    assert "cannot install shop==9.9" in unknown.told
    assert "1.3" in unknown.told
    assert TOKEN not in str(unknown)
    stager.env["INDEX_TOKEN"] = "wr0ng"
    refused = stager.run(Package(requirement="shop==1.2", index_url=index))
    assert refused.exit == 6
    assert "wr0ng" not in str(refused)
    assert "is not NAME==VERSION" in stager.run(Package(requirement="shop>=1")).told
    plain = stager.run(Package(requirement="shop==1.2", index_url="http://example.org/simple"))
    assert "will not install from http://example.org/simple" in plain.told
    stager.assert_nothing_left()
