"""What is compared: deployer and its peers, each serving the same app with 4 workers that need BOOT_S to boot.

Each is configured as its own documentation advises for a reload without loss; `settings` says how. The peers get
new code in place, before their reload is timed, as their users deploy it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from tests import apps
from tests.apps import App
from tests.bench import bare, peers
from tests.cluster import Cluster, free_port, wait_until

WORKERS = 4
BOOT_S = 0.3
SOAK_S = 1.0
THREADS = 8
DRAIN_S = 30  # every system may take as long for its open requests
START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
RELOAD_LIMIT_S = 60.0
GOOD, BROKEN = "good", "raises_at_import"
APP = "-w {n} -k gthread --threads 8 --keep-alive 75 --no-control-socket"


class System(ABC):
    """One system with its app. `with system:` runs it; nothing of it is left after."""

    name = ""
    app = ""
    settings = ""
    ours = False
    must_lose_none = False

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *failure: object) -> None: ...

    @property
    @abstractmethod
    def address(self) -> str: ...

    @abstractmethod
    def write(self, behaviour: str, label: str) -> None:
        """Put a release's files where the next reload finds them."""

    @abstractmethod
    def reload(self) -> str:
        """Ask for the rollout and wait as long as the command for it does; what it said of itself, or ""."""


class Deployer(System):
    """Ours, around any server."""

    ours = True

    def __init__(self, server: str, app: str, *, must_lose_none: bool = True) -> None:
        self.name, self.app, self.server = f"deployer, {server}", app, server
        self.must_lose_none = must_lose_none
        self.settings = (
            f"count = {WORKERS}, soak = {SOAK_S:g}s, drain_timeout = {DRAIN_S}s, preflight and health check on"
        )

    def __enter__(self) -> Self:
        options: dict[str, Any] = {"soak": f"{SOAK_S:g}s", "drain_timeout": f"{DRAIN_S}s", "interval": "5s"}
        self._cluster = BenchCluster(server=self.server, count=WORKERS, **options)
        try:
            self.write(GOOD, "r0")
            self._cluster.run("up", code=0)
        except BaseException:
            self._cluster.close(check=False)
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._cluster.close(check=failure[0] is None)

    @property
    def address(self) -> str:
        return self._cluster.address

    def write(self, behaviour: str, label: str) -> None:
        self._cluster.write(behaviour, label, boot_s=BOOT_S)

    def reload(self) -> str:
        done = self._cluster.run("deploy", "--json")
        self.events = done.events
        if not self.events:
            raise RuntimeError(f"deployer deploy: exit {done.code}: {done.text}")
        return f"exit {done.code} {done.last.get('outcome', '')}"

    def release(self, directory: Path) -> App:
        """The same release, to be run without deployer."""
        return SERVERS[self.server](directory, GOOD, label="alone", boot_s=BOOT_S)


class BenchCluster(Cluster):
    """With the sample app as one more server."""

    def __enter__(self) -> Self:
        return self

    def write(self, behaviour: str = GOOD, label: str = "hello", **options: Any) -> App:
        if self.server != "sample_app":
            return super().write(behaviour, label, **options)
        for path in self.directory.glob("*.py"):
            path.unlink()
        app = sample(self.directory, behaviour, label=label, **options)
        (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        return app


def sample(directory: Path, behaviour: str = GOOD, *, label: str = "hello", boot_s: float = 0.0) -> App:
    """The repository's sample app (Starlette on uvicorn), which shows `label` and takes `boot_s` longer to start."""
    directory.mkdir(parents=True, exist_ok=True)
    source = apps.REPO / "sample_app"
    text = (source / "app.py").read_text().replace("Hello from the first release", label)
    end = "raise RuntimeError('broken on purpose')\n" if behaviour == BROKEN else ""
    (directory / "app.py").write_text(f"{text}\ntime.sleep({boot_s})\n{end}")
    for name in ("serve.py", "sessions.py"):
        (directory / name).write_text((source / name).read_text())
    return App(directory, f"{sys.executable} serve.py", "notify")


def wsgi(directory: Path, behaviour: str, label: str) -> None:
    """The plain WSGI app. Without gunicorn.conf.py, by which the master itself would import `behaviour` and hand
    its old values down to every new worker."""
    apps.gunicorn(directory, behaviour, label=label, boot_s=BOOT_S)
    (directory / "gunicorn.conf.py").unlink()


SERVERS: dict[str, Callable[..., App]] = apps.SERVERS | {"sample_app": sample}


class Peer(System):
    """A peer's own supervisor, in a scratch directory and a session of its own."""

    def __init__(self) -> None:
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.peer = self.find()
        self._scratch = bare.scratch()
        self.directory = Path(self._scratch.name) / "app"
        try:
            self.write(GOOD, "r0")
            self.start()
            wait_until(self.answers, f"{self.name} answers; {self.log()}", START_LIMIT_S, 0.1)
            time.sleep(2 * BOOT_S)  # the other workers
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            end_all_of(self._scratch.name)
            self._scratch.cleanup()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bare.answer(self.address, 2.0)[0] == 200
        return False

    def log(self) -> str:
        path = Path(self._scratch.name) / "log"
        return path.read_text()[-1500:] if path.exists() else ""

    def spawn(self, command: list[str], **env: str) -> None:
        # No bytecode: two releases written within one second would pass for the same to Python's cache.
        with (Path(self._scratch.name) / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | env,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """SIGTERM to the master; then SIGKILL to whatever it left."""
        if not hasattr(self, "process"):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT_S)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @staticmethod
    @abstractmethod
    def find() -> peers.Peer: ...

    @abstractmethod
    def start(self) -> None: ...


class Gunicorn(Peer):
    name, app = "gunicorn HUP", "WSGI"
    settings = f"{APP.format(n=WORKERS)} --graceful-timeout {DRAIN_S}"
    find = staticmethod(peers.gunicorn)

    def write(self, behaviour: str, label: str) -> None:
        wsgi(self.directory, behaviour, label)

    def start(self) -> None:
        self.spawn([str(self.peer.program), "-b", f"127.0.0.1:{self.port}", *self.settings.split(), "app:app"])

    def reload(self) -> str:
        self.process.send_signal(signal.SIGHUP)
        return ""


class Uvicorn(Peer):
    name, app = "uvicorn --workers HUP", "ASGI"
    settings = f"--workers {WORKERS} --timeout-keep-alive 75 --timeout-graceful-shutdown {DRAIN_S} --log-level warning"
    find = staticmethod(peers.uvicorn)

    def write(self, behaviour: str, label: str) -> None:
        apps.uvicorn(self.directory, behaviour, label=label, boot_s=BOOT_S)

    def start(self) -> None:
        self.spawn([str(self.peer.program), "--port", str(self.port), *self.settings.split(), "app:app"])

    def reload(self) -> str:
        self.process.send_signal(signal.SIGHUP)
        return ""


class Uwsgi(Peer):
    name, app = "uWSGI chain reload", "WSGI"
    settings = (
        f"--master --processes {WORKERS} --threads {THREADS} --lazy-apps --http --http-keepalive=75 --die-on-term "
        f"--worker-reload-mercy {DRAIN_S} --touch-chain-reload --listen 1024 --disable-logging"
    )
    find = staticmethod(peers.uwsgi)

    def write(self, behaviour: str, label: str) -> None:
        wsgi(self.directory, behaviour, label)

    def start(self) -> None:
        self._touch = self.directory.parent / "touch"
        self._touch.touch()
        words = self.settings.replace("--touch-chain-reload", f"--touch-chain-reload {self._touch}")
        words = words.replace("--http ", f"--http 127.0.0.1:{self.port} ")
        self.spawn([str(self.peer.program), *words.split(), "--module", "app:app", "--chdir", str(self.directory)])

    def reload(self) -> str:
        now = time.time() + 1  # it compares whole seconds
        os.utime(self._touch, (now, now))
        return ""


class Pm2(Peer):
    name, app = "PM2 reload", "Node"
    settings = f"exec_mode cluster, instances {WORKERS}, wait_ready, listen_timeout 10 s, kill_timeout {DRAIN_S} s"
    find = staticmethod(peers.pm2)

    def write(self, behaviour: str, label: str) -> None:
        apps.node(self.directory, behaviour, label=label, boot_s=BOOT_S)

    def start(self) -> None:
        wrapper = Path(__file__).with_name("pm2_app.js")
        (self.directory / "app.js").write_text(wrapper.read_text())
        options = {"exec_mode": "cluster", "instances": WORKERS, "wait_ready": True, "listen_timeout": 10_000}
        options |= {"kill_timeout": DRAIN_S * 1000, "env": {"BENCH_PORT": str(self.port)}}
        program = {"name": "bench", "script": "app.js", "cwd": str(self.directory)}
        (self.directory / "bench.config.json").write_text(json.dumps({"apps": [program | options]}))
        self.command("start", "bench.config.json")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """pm2 with a home of its own: nobody's real PM2 is met."""
        return subprocess.run(
            [str(self.peer.program), *words],
            cwd=self.directory,
            env=os.environ | {"PM2_HOME": self.home, "PM2_DISABLE_VERSION_CHECK": "true"},
            capture_output=True,
            text=True,
            timeout=RELOAD_LIMIT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    @property
    def home(self) -> str:
        return str(Path(self._scratch.name) / "pm2")

    def god(self) -> int:
        return int((Path(self.home) / "pm2.pid").read_text())

    def reload(self) -> str:
        return f"exit {self.command('reload', 'bench').returncode}"

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            god = psutil.Process(self.god())
            family = [god, *god.children(recursive=True)]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.command("delete", "bench")
                self.command("kill")
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def end_all_of(directory: str) -> None:
    """SIGKILL to every process that names the scratch directory: PM2 may have started one while it was ended."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(word.startswith(directory) for word in words):
                process.kill()
                process.wait(STOP_LIMIT_S)


def everything() -> list[System]:
    """In the order of the table: each of ours above the peers of its language."""
    return [
        Deployer("gunicorn", "WSGI"),
        Gunicorn(),
        Uwsgi(),
        Deployer("sample_app", "ASGI"),
        # It closes idle connections the moment it gets SIGTERM: what is lost by that is its own (test_servers.py).
        Deployer("uvicorn", "ASGI", must_lose_none=False),
        Uvicorn(),
        Deployer("node", "Node"),
        Pm2(),
        Deployer("mini", "stdlib"),
    ]
