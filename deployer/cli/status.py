"""`deployer status`: what serves now, on one screen."""

from __future__ import annotations

import time

from deployer.cli.lines import KIND_WORDS, release_change
from deployer.cli.output import Output, clean, shorten, table
from deployer.cli.session import Session
from deployer.cli.traffic import COLUMNS, cells, fit, told
from deployer.units import format_duration, format_size
from deployer.wire.schema import PREFLIGHT_SLOT, LastExit, RolloutInfo, Status, TemplateInfo, WatchInfo, WorkerInfo

TAIL_LINES = 5
RECENT_S = 3600.0
WIDTH = 80
"""The table fits the narrowest terminal people use; a pipe gets every line whole."""


def run(session: Session) -> int:
    """Show what serves now."""
    out = session.out
    status = session.client.status()
    if out.style.json:
        out.result_json(status)
    elif out.style.quiet:
        out.result(status.release or out.glyphs.dash)
    else:
        _print(status, out)
    return 0


def _print(status: Status, out: Output) -> None:
    out.result(_cluster_line(status, out))
    manager, keeper = status.manager, status.keeper
    keeper_text = f"keeper pid {keeper.pid}" if keeper.pid is not None else "no keeper"
    out.result(f"  manager pid {manager.pid} up {format_duration(manager.uptime_s)}, {keeper_text}")
    if status.rollout is not None:
        out.result(_rollout_line(status.rollout, out))
    for waiting in status.queued:
        text = f"  rollout {waiting.id}: {waiting.kind} waits its turn, place {waiting.place}, by {waiting.who}"
        out.result(clean(text))
    if status.watch is not None:
        out.result(_watch_line(status.watch))
    _print_table(status, out)
    for template in status.templates:
        out.result(f"  {_template(template)}")
    _print_traffic(status, out)
    _print_limits(status, out)
    _print_tails(status, out)
    _print_warnings(status, out)


def _print_table(status: Status, out: Output) -> None:
    workers = sorted(status.workers, key=lambda worker: worker.slot)
    head: tuple[str, ...] = ("SLOT", "PID", "RELEASE", "STATE", "UP", "RESTARTS", "CPU", "MEM")
    rows = [_row(worker, out) for worker in workers]
    if any(worker.traffic for worker in workers):
        head += COLUMNS
        rows = [row + cells(worker.traffic, out.glyphs.dash) for row, worker in zip(rows, workers, strict=True)]
    head += ("LAST EXIT",)
    rows = [(*row, _last_exit(worker.last_exit) or out.glyphs.dash) for row, worker in zip(rows, workers, strict=True)]
    width = max(out.width, WIDTH) - 2 if out.stdout.isatty() else None
    for line in table(*fit(head, rows, width), width=width):
        out.result(f"  {line}")


def _print_traffic(status: Status, out: Output) -> None:
    """What a draining worker still has to do, what the application said of itself, its last error."""
    width = out.width if out.stdout.isatty() else None
    for worker in status.workers:
        for text in told(worker, time.time()):
            out.result(shorten(f"  slot {worker.slot}: {clean(text)}", width))


def _cluster_line(status: Status, out: Output) -> str:
    ready = len({worker.slot for worker in status.workers if worker.slot and worker.state in ("ready", "recycling")})
    if status.release is None:
        sign, word, colour = out.glyphs.idle, "nothing deployed", None
    elif ready >= status.count:
        sign, word, colour = out.glyphs.dot, "healthy", "good"
    else:
        word = "degraded" if ready else "down"
        sign, colour = (out.glyphs.warn, "warn") if ready else (out.glyphs.bad, "bad")
    sign = out.paint(sign, colour, stream=out.stdout)
    listen = " ".join(status.listen)
    release = f"  {status.release}" if status.release else ""
    return clean_tail(f"{sign} {status.app} {word}", f"{release}  {ready}/{status.count} ready  {listen}")


def clean_tail(head: str, tail: str) -> str:
    """`head` has our own colours, which `clean` would take for the worker's."""
    return f"{head}{clean(tail)}".rstrip()


def _rollout_line(rollout: RolloutInfo, out: Output) -> str:
    word = KIND_WORDS.get(rollout.kind, rollout.kind)
    change = release_change(rollout.previous, rollout.release, out.glyphs)
    for_ = format_duration(max(0.0, time.time() - rollout.started_at))
    text = f"  rollout {rollout.id}: {word} {change}, {rollout.phase}, by {rollout.who}, for {for_}"
    return clean(text)


def _watch_line(watch: WatchInfo) -> str:
    if watch.kind == "heal":
        what = f"waits for a fix of rollout {watch.rollout} in {watch.path}"
    else:
        what = f"{watch.path}, {watch.saves} save{'' if watch.saves == 1 else 's'}"
    polls = ", polling" if watch.mode == "poll" else ""
    mode = ", does not look yet" if watch.mode is None else polls
    for_ = format_duration(max(0.0, time.time() - watch.since))
    return clean(f"  watch: {what}{mode}, by {watch.who}, for {for_}")


def _row(worker: WorkerInfo, out: Output) -> tuple[str, ...]:
    dash = out.glyphs.dash
    running = worker.pid is not None
    return (
        str(worker.slot),
        str(worker.pid) if running else dash,
        worker.release or dash,
        worker.state,
        format_duration(worker.uptime_s) if running else dash,
        str(worker.restarts),
        f"{worker.cpu_percent:.{0 if worker.cpu_percent >= 10 else 1}f}%" if running else dash,
        format_size(worker.rss_bytes) if running else dash,
    )


def _template(template: TemplateInfo) -> str:
    text = f"template of {template.release}: pid {template.pid} {template.state}, {format_size(template.rss_bytes)}"
    if template.standby_left_s is not None:
        text += f", on standby for {format_duration(template.standby_left_s)} more"
    return clean(text)


def _last_exit(last: LastExit | None) -> str:
    if last is None:
        return ""
    if last.signal:
        return last.signal
    return f"exit {last.code}" if last.code is not None else last.text


def _print_limits(status: Status, out: Output) -> None:
    """What is wrong with a worker that runs; and who was replaced for such a reason not long ago."""
    for worker in status.workers:
        if worker.why is not None:
            out.result(clean(f"  slot {worker.slot}: pid {worker.pid}: {worker.why}"))
    for worker in {worker.slot: worker for worker in status.workers}.values():
        past = worker.recycled
        ago = 0.0 if past is None else max(0.0, time.time() - past.at)
        if past is not None and past.pid != worker.pid and (ago < RECENT_S or out.style.verbose):
            text = f"{past.release} pid {past.pid} replaced ({past.reason}) {format_duration(ago)} ago: {past.text}"
            out.result(clean(f"  slot {worker.slot}: {text}"))


def _print_tails(status: Status, out: Output) -> None:
    """The last words of each slot's last dead worker; of those that serve again only under --verbose."""
    for worker in status.workers:
        last = worker.last_exit
        if last is None or not (out.style.verbose or worker.state != "ready"):
            continue
        ago = format_duration(max(0.0, time.time() - last.at))
        out.result(f"  slot {worker.slot}: {last.release} pid {last.pid} {clean(last.text)} {ago} ago")
        width = out.width if out.stdout.isatty() else None
        for line in last.tail[-TAIL_LINES:]:
            out.result(shorten(f"  {out.glyphs.bar} {clean(line)}".rstrip(), width))


def _print_warnings(status: Status, out: Output) -> None:
    if status.keeper.pid is None:
        out.note("warning: the keeper is gone: nothing restarts the manager if it dies")
        out.note("hint: deployer up")
    if status.rollout is not None and status.rollout.phase == "held":
        mixed = any(w.slot > PREFLIGHT_SLOT and w.pid and w.release != status.release for w in status.workers)
        what = "the slots run a mix of releases" if mixed else f"{status.release} serves on every slot"
        out.note(f"warning: the failed rollout is held for inspection; {what}")
        out.note("hint: deployer deploy --abort")
    elif status.rollout is not None:
        out.note("hint: deployer follow")
    elif status.release is None:
        out.note("hint: deployer deploy")
