"""From a save to the first answer of the new code, while somebody asks all the time: `deployer watch` and its peers.

python -m tests.bench.saves [--saves N] [--only TEXT]

One client, a new connection for each request, a millisecond between an answer and the next request: it measures, and it
is who loses. A request has failed when it was not answered whole with 200; who merely waited has not.
"""

from __future__ import annotations

import argparse
import random
import socket
import time
from dataclasses import dataclass, field

from tests.bench import peers
from tests.bench.reloaders import LARGE, NODES, SMALL, everything
from tests.bench.systems import GOOD, System
from tests.bench.table import end_with, machine, median, met, say, show
from tests.load import BrokenAnswerError, parse_address, parse_answer

SAVES = 20
PAUSE_S = 0.001
REST_S = (1.2, 2.2)  # between two saves, at random: some peers look once a second
NEVER_S = 10.0  # an edit that is not served by then was lost
ANSWER_LIMIT_S = 5.0
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
TARGETS_MS = {SMALL.name: 60, LARGE.name: 100}


class Client:
    """Asks one request after the other."""

    def __init__(self, address: str) -> None:
        self._family, self._target = parse_address(address)
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.requests = self.failed = 0
        self.down_s = 0.0  # from a request that failed to the next answer
        self._down_since: float | None = None

    def ask(self) -> str:
        """What it was answered, "" when that was nothing whole."""
        time.sleep(PAUSE_S)
        self.requests += 1
        began = time.monotonic()
        try:
            with socket.socket(self._family) as sock:
                sock.settimeout(ANSWER_LIMIT_S)
                sock.connect(self._target)
                sock.sendall(REQUEST)
                answer = parse_answer(b"".join(iter(lambda: sock.recv(65536), b"")))
        except (OSError, BrokenAnswerError):
            answer = None
        if answer is None or answer.status != 200:
            self.failed += 1
            self._down_since = self._down_since or began
            return ""
        if self._down_since is not None:
            self.down_s += time.monotonic() - self._down_since
            self._down_since = None
        return answer.body.decode().strip()

    def ask_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask()

    def seconds_until(self, label: str) -> float | None:
        """None: it never came."""
        began = time.monotonic()
        while self.ask() != label:
            if time.monotonic() - began > NEVER_S:
                return None
        return time.monotonic() - began


@dataclass
class Result:
    system: System
    skipped: str = ""
    could_not_run: bool = False
    ms: list[float] = field(default_factory=list)
    missed: int = 0  # edits that were never served
    requests: int = 0
    failed: int = 0
    down_s: float = 0.0

    @property
    def target(self) -> int | None:
        return TARGETS_MS.get(self.system.app) if self.system.ours else None

    @property
    def good(self) -> bool:
        """Of ours: nothing may be lost, neither a request nor an edit."""
        return not self.system.ours or (bool(self.ms) and not (self.failed or self.missed))

    def row(self) -> list[object]:
        first = [self.system.name, self.system.app]
        if self.skipped:
            return [*first, self.skipped, *[""] * 6]
        verdict = "-" if self.target is None else f"<= {self.target} {met(median(self.ms) <= self.target)}"
        worst = f"{max(self.ms, default=float('nan')):.0f}"
        saves = len(self.ms) + self.missed
        failed, down = f"{self.failed / saves:.1f}", f"{self.down_s * 1000 / saves:.0f}"
        return [*first, f"{median(self.ms):.0f}", worst, self.missed, failed, down, self.requests, verdict]


def measure(system: System, saves: int) -> Result:
    result = Result(system)
    chance = random.Random(1)  # the same rests for everybody
    try:
        with system:
            client = Client(system.address)
            for number in range(saves + 1):
                client.ask_for(chance.uniform(*REST_S))
                label = f"save-{number:04d}"
                system.write(GOOD, label)
                seconds = client.seconds_until(label)
                if number == 0:
                    client.forget()  # the first save of a session is not like the others
                elif seconds is None:
                    result.missed += 1
                else:
                    result.ms.append(seconds * 1000)
            client.ask_for(REST_S[0])
            result.requests, result.failed, result.down_s = client.requests, client.failed, client.down_s
    except peers.SkippedError as why:
        result.skipped = f"SKIPPED: {why}"
    except Exception as error:  # the other systems are measured all the same
        result.skipped, result.could_not_run = f"COULD NOT RUN: {error}", True
    said = result.skipped or f"{median(result.ms):.0f} ms, {result.failed} of {result.requests} failed"
    say(f"{system.name}, {system.app}: {said}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.saves")
    parser.add_argument("--saves", type=int, default=SAVES, help=f"of each system ({SAVES})")
    parser.add_argument("--only", default="", help="systems with this in their name or app")
    words = parser.parse_args()
    systems = [make() for make in everything()]
    results = [measure(s, words.saves) for s in systems if words.only in f"{s.name}, {s.app}"]
    head = ("system", "app", "ms", "worst", "edits lost", "failed/save", "down ms/save", "requests", "target")
    title = f"Save to new code, one worker, median and worst of {words.saves} saves, a client asking all the time"
    notes = [
        "failed: not answered whole with 200, asked each millisecond",
        "down: from the first such request to the next answer",
        "ms: from the end of the write to the first answer of the new code",
        f"edits lost: not served within {NEVER_S:g} s of the save",
        f"heavy: imports numpy, pandas and aiohttp; {NODES.name}: node:http",
        f"machine: {machine()}",
    ]
    show(title, head, [result.row() for result in results], notes)
    targets = all(result.target is None or median(result.ms) <= result.target for result in results if result.ms)
    broken = [result for result in results if result.could_not_run or not (result.good or result.skipped)]
    return 1 if broken or not targets else 0


if __name__ == "__main__":
    end_with(main)
