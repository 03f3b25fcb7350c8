"""deployer's peers: each with its own supervisor, in a scratch directory and a session of its own.

Each is configured as its own documentation advises for a reload without loss; `settings` says how. They get new code
in place, before their reload is timed, as their users deploy it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from abc import abstractmethod
from pathlib import Path
from typing import Self

import psutil

from tests import apps
from tests.bench import bare, peers, visits
from tests.bench.systems import DRAIN_S, GOOD, THREADS, Plan, System
from tests.bench.table import say
from tests.cluster import free_port, wait_until

START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
RELOAD_LIMIT_S = 60.0
MEET_LIMIT_S = 15.0
BOOT_SLACK_S = 0.5  # for what does not look whether a worker is ready, but has to be told how long it takes


class Peer(System):
    """`options` are its flags, with {n}, {drain}, {threads} and {interval} to be filled in by the plan."""

    options = ""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan, self.port = plan or Plan(), free_port()

    @property
    def settings(self) -> str:  # type: ignore[override]
        interval = self.plan.boot_s + BOOT_SLACK_S
        return self.options.format(n=self.plan.workers, drain=DRAIN_S, threads=THREADS, interval=interval)

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
            if len(found := visits.meet(self.address, self.plan.workers, MEET_LIMIT_S)) < self.plan.workers:
                say(f"{self.name}: only {len(found)} of {self.plan.workers} workers were met after its start")
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
    options = "-w {n} -k gthread --threads {threads} --keep-alive 75 --no-control-socket --graceful-timeout {drain}"
    find = staticmethod(peers.gunicorn)

    def write(self, behaviour: str, label: str) -> None:
        wsgi(self.directory, behaviour, label, self.plan.boot_s)

    def start(self) -> None:
        self.spawn([str(self.peer.program), "-b", f"127.0.0.1:{self.port}", *self.settings.split(), "app:app"])

    def reload(self) -> str:
        self.process.send_signal(signal.SIGHUP)
        return ""


class Uvicorn(Peer):
    name, app = "uvicorn --workers HUP", "ASGI"
    options = (
        "--workers {n} --timeout-keep-alive 75 --timeout-graceful-shutdown {drain} --log-level warning --no-access-log"
    )
    find = staticmethod(peers.uvicorn)

    def write(self, behaviour: str, label: str) -> None:
        apps.uvicorn(self.directory, behaviour, label=label, boot_s=self.plan.boot_s)

    def start(self) -> None:
        self.spawn([str(self.peer.program), "--port", str(self.port), *self.settings.split(), "app:app"])

    def reload(self) -> str:
        self.process.send_signal(signal.SIGHUP)
        return ""


class GunicornPreload(Gunicorn):
    """The app is imported by the master. A new one by SIGUSR2, and the end of the old one when that has its workers."""

    name = "gunicorn --preload USR2"
    options = Gunicorn.options + " --preload"

    def start(self) -> None:
        self._pid_file = self.directory.parent / "pid"
        words = [*self.settings.split(), "-p", str(self._pid_file)]
        self.spawn([str(self.peer.program), "-b", f"127.0.0.1:{self.port}", *words, "app:app"])

    def reload(self) -> str:
        old, coming = int(self._pid_file.read_text()), self._pid_file.with_name("pid.2")
        os.kill(old, signal.SIGUSR2)
        wait_until(lambda: self._workers_of(coming) == self.plan.workers, "the new master has its workers")
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: not coming.exists(), "the new master is the only one", DRAIN_S)
        return ""

    @staticmethod
    def _workers_of(pid_file: Path) -> int:
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            return len(psutil.Process(int(pid_file.read_text())).children())
        return 0


class Granian(Peer):
    """It starts a new worker, sleeps for respawn-interval, and ends an old one: its users are to know how long they
    boot."""

    name, app = "granian --workers HUP", "ASGI"
    options = (
        "--interface asgi --workers {n} --loop uvloop --respawn-interval {interval} --workers-kill-timeout {drain} "
        "--log-level warning"
    )
    find = staticmethod(peers.granian)

    def write(self, behaviour: str, label: str) -> None:
        apps.uvicorn(self.directory, behaviour, label=label, boot_s=self.plan.boot_s)

    def start(self) -> None:
        self.spawn([str(self.peer.program), "--port", str(self.port), *self.settings.split(), "app:app"])

    def reload(self) -> str:
        self.process.send_signal(signal.SIGHUP)
        return ""


class Uwsgi(Peer):
    name, app = "uWSGI chain reload", "WSGI"
    settle_s = 4.0  # it ignores a reload that is asked for while it finishes another
    options = (
        "--master --processes {n} --threads {threads} --lazy-apps --http --http-keepalive=75 --die-on-term "
        "--worker-reload-mercy {drain} --touch-chain-reload --listen 1024 --disable-logging"
    )
    find = staticmethod(peers.uwsgi)

    def write(self, behaviour: str, label: str) -> None:
        wsgi(self.directory, behaviour, label, self.plan.boot_s)

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
    options = "exec_mode cluster, instances {n}, wait_ready, listen_timeout 10 s, kill_timeout {drain} s"
    find = staticmethod(peers.pm2)

    def write(self, behaviour: str, label: str) -> None:
        apps.node(self.directory, behaviour, label=label, boot_s=self.plan.boot_s)

    def start(self) -> None:
        wrapper = Path(__file__).with_name("pm2_app.js")
        (self.directory / "app.js").write_text(wrapper.read_text())
        options = {"exec_mode": "cluster", "instances": self.plan.workers, "wait_ready": True, "listen_timeout": 10_000}
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


def wsgi(directory: Path, behaviour: str, label: str, boot_s: float) -> None:
    """The plain WSGI app. Without gunicorn.conf.py, by which the master itself would import `behaviour` and hand
    its old values down to every new worker."""
    apps.gunicorn(directory, behaviour, label=label, boot_s=boot_s)
    (directory / "gunicorn.conf.py").unlink()
