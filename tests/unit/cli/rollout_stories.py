"""Rollouts as the manager would tell them: one function for each way a deploy can go."""

from __future__ import annotations

from typing import Any

from scripted_manager import event

TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/srv/shop/.venv/lib/python3.11/site-packages/gunicorn/util.py", line 371, in import_app',
    "    mod = importlib.import_module(module)",
    '  File "/srv/shop/.deployer/releases/v7/app/pricing.py", line 12, in <module>',
    "    from vendor.pricing import Client",
    "\x1b]0;owned\x07\x1b[31mModuleNotFoundError: No module named 'vendor.pricing'\x1b[0m",
]


def _numbered(*events: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [event(number, name, **fields) for number, (name, fields) in enumerate(events, start=1)]


def _begin() -> list[tuple[str, dict[str, Any]]]:
    return [
        (
            "rollout.started",
            {"kind": "deploy", "release": None, "previous": "v6", "slots": [1, 2], "who": "ana", "message": None},
        ),
        ("rollout.phase", {"phase": "staging"}),
        ("release.progress", {"text": "copied 213 files"}),
        (
            "release.staged",
            {
                "release": "v7",
                "source": "/srv/shop",
                "commit": "41d09e7c0ffee",
                "subject": "Fix cart rounding",
                "files": 213,
                "bytes": 91234,
                "seconds": 0.4,
            },
        ),
    ]


def _preflight() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("rollout.phase", {"phase": "preflight"}),
        ("worker.starting", {"slot": 0, "pid": 9000, "release": "v7"}),
        ("worker.ready", {"slot": 0, "pid": 9000, "release": "v7", "seconds": 0.3}),
        ("preflight.passed", {"release": "v7", "seconds": 0.5, "checks": ["ready", "GET /healthz 200"]}),
    ]


def _replace(
    slot: int, old: int, new: int, release: str = "v7", before: str = "v6"
) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("worker.starting", {"slot": slot, "pid": new, "release": release}),
        ("worker.ready", {"slot": slot, "pid": new, "release": release, "seconds": 0.3}),
        ("worker.draining", {"slot": slot, "pid": old, "release": before}),
        ("worker.exited", _exit(slot, old, before, 0, "exit code 0", expected=True, seconds=0.1)),
        ("slot.moved", {"slot": slot, "old_pid": old, "new_pid": new, "release": release, "seconds": 0.6}),
    ]


def _exit(slot: int, pid: int, release: str, code: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "pid": pid,
        "release": release,
        "code": code,
        "signal": None,
        "text": text,
        "tail": [],
        **more,
    }


def _finished(outcome: str, code: int, **more: Any) -> tuple[str, dict[str, Any]]:
    fields = {
        "outcome": outcome,
        "release": "v7",
        "serving": "v6",
        "reason": None,
        "exit_code": code,
        "seconds": 3.4,
        "problem": None,
        "tail": [],
    }
    return "rollout.finished", {**fields, **more}


def promoted() -> list[dict[str, Any]]:
    return _numbered(
        *_begin(),
        *_preflight(),
        ("rollout.phase", {"phase": "canary"}),
        *_replace(1, 8121, 9004),
        ("rollout.phase", {"phase": "soaking"}),
        ("soak.started", {"seconds": 3.0}),
        ("rollout.phase", {"phase": "rolling"}),
        *_replace(2, 8122, 9011),
        ("rollout.phase", {"phase": "promoting"}),
        _finished("promoted", 0, serving="v7"),
    )


def judged(verdict: str, text: str) -> list[dict[str, Any]]:
    """The same, with visitors: by `verdict` that it extended its soak once, and what was said of the canary."""
    fields = {"slot": 1, "release": "v7", "verdict": verdict, "reason": None, "text": text}
    return _numbered(
        *_begin(),
        ("rollout.phase", {"phase": "soaking"}),
        ("soak.started", {"seconds": 3.0}),
        ("soak.extended", {"seconds": 5.0, "text": "too few requests to judge: 4 of 20"}),
        ("canary.judged", fields),
        ("rollout.phase", {"phase": "rolling"}),
        *_replace(1, 8121, 9004),
        _finished("promoted", 0, serving="v7"),
    )


def canary_halt() -> list[dict[str, Any]]:
    problem = {"what": "v7 does not start: exit code 1", "cause": "the worker ended before it was ready", "hint": None}
    return _numbered(
        *_begin(),
        ("rollout.phase", {"phase": "canary"}),
        ("worker.starting", {"slot": 1, "pid": 9310, "release": "v7"}),
        (
            "worker.exited",
            _exit(1, 9310, "v7", 1, "exit code 1", expected=False, seconds=0.6) | {"tail": TRACEBACK},
        ),
        ("rollout.failed", {"slot": 1, **problem, "reason": "worker_exit", "tail": TRACEBACK}),
        ("rollout.phase", {"phase": "reverting"}),
        _finished("failed", 3, reason="worker_exit", problem=problem, tail=TRACEBACK),
    )


def template_halt() -> list[dict[str, Any]]:
    """With `preload`: the application cannot be imported, and the live release's template is made anew meanwhile."""
    problem = {"what": "the template of v7 exited with code 1 after 0.6s", "cause": None, "hint": None}
    return _numbered(
        *_begin(),
        ("rollout.phase", {"phase": "preflight"}),
        ("template.starting", {"slot": -1, "pid": 9310, "release": "v7"}),
        ("template.exited", _exit(-1, 9001, "v6", 1, "exit code 1", expected=False, seconds=60.0)),
        ("template.starting", {"slot": -1, "pid": 9311, "release": "v6"}),
        ("template.exited", _exit(-1, 9310, "v7", 1, "exit code 1", expected=False, seconds=0.6)),
        ("rollout.failed", {"slot": -1, **problem, "reason": "worker_exit", "tail": TRACEBACK}),
        _finished("reverted", 3, reason="worker_exit", problem=problem, tail=TRACEBACK),
    )


def later_halt() -> list[dict[str, Any]]:
    problem = {"what": "v7 was killed by SIGSEGV", "cause": None, "hint": "deployer logs --release v7 --slot 2"}
    return _numbered(
        *_begin(),
        ("rollout.phase", {"phase": "canary"}),
        *_replace(1, 8121, 9004),
        ("rollout.phase", {"phase": "rolling"}),
        ("worker.starting", {"slot": 2, "pid": 9011, "release": "v7"}),
        (
            "worker.exited",
            _exit(2, 9011, "v7", 0, "killed by SIGSEGV", expected=False, seconds=1.2)
            | {"code": None, "signal": "SIGSEGV"},
        ),
        ("rollout.failed", {"slot": 2, **problem, "reason": "worker_signal", "tail": ["Segmentation fault"]}),
        ("rollout.phase", {"phase": "reverting"}),
        *_replace(1, 9004, 9020, "v6", "v7"),
        _finished("reverted", 4, reason="worker_signal", problem=problem, tail=["Segmentation fault"]),
    )


def aborted() -> list[dict[str, Any]]:
    problem = {"what": "aborted by bob", "cause": None, "hint": None}
    return _numbered(
        *_begin(),
        ("rollout.phase", {"phase": "canary"}),
        ("worker.starting", {"slot": 1, "pid": 9004, "release": "v7"}),
        ("rollout.failed", {"slot": None, **problem, "reason": "aborted", "tail": []}),
        ("rollout.phase", {"phase": "reverting"}),
        ("worker.draining", {"slot": 1, "pid": 9004, "release": "v7"}),
        ("worker.exited", _exit(1, 9004, "v7", 0, "exit code 0", expected=True, seconds=0.1)),
        _finished("reverted", 3, reason="aborted", problem=problem),
    )


def source_failed() -> list[dict[str, Any]]:
    problem = {
        "what": 'there is no ref "mian"',
        "cause": "https://h/shop.git has main",
        "hint": "deployer deploy --ref main",
    }
    return _numbered(
        *_begin()[:2],
        ("rollout.failed", {"slot": None, **problem, "reason": "source", "tail": []}),
        _finished("failed", 6, release=None, reason="source", problem=problem),
    )


def unchanged() -> list[dict[str, Any]]:
    return _numbered(*_begin()[:2], _finished("unchanged", 0, release="v6", seconds=0.2))
