"""Rules across keys: each names the key, its line, and what to write."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from deployer.config.load import load
from deployer.config.rules import slug
from deployer.config.workerrules import rlimit
from deployer.errors import ConfigError

LISTEN = '[[listen]]\naddress = "tcp://127.0.0.1:8000"\n'
APP_HINT = 'write app = "module:object", or app = "module:factory()"'
EMPTY_COMMAND_HINT = (
    'write what starts your app, e.g. app = "module:object" for a WSGI or ASGI application, '
    'or command = "node server.js"'
)
PLACEHOLDERS_HINT = "known: {fd}, {fd:NAME}, {worker}, {release}; write {{ and }} for the program's own braces"


def refusal(directory: Path, text: str) -> tuple[str, str | None]:
    path = directory / "deployer.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.what.startswith("deployer.toml:")
    return caught.value.what.removeprefix("deployer.toml:"), caught.value.hint


def accepts(directory: Path, text: str) -> bool:
    path = directory / "deployer.toml"
    path.write_text(text)
    return load(path) is not None


def worker(line: str) -> str:
    """A file whose third line is `line` of [worker]."""
    command = "" if line.startswith(("command", "app")) else "command = 'serve'\n"
    return f"name = 'a'\n[worker]\n{line}\n{command}{LISTEN}"


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("command = ''", "`command` in [worker] is empty", EMPTY_COMMAND_HINT),
        ("app = 'shop'", '`app` in [worker]: "shop" does not name an application', APP_HINT),
        ("app = 'shop:app(1)'", '`app` in [worker]: "shop:app(1)" does not name an application', APP_HINT),
        ("app = 'a:b; x'", '`app` in [worker]: "a:b; x" does not name an application', APP_HINT),
        (
            "app = 'a:b'\ncommand = 'c'",
            "`command` and `app` in [worker]: only one of the two can be",
            "keep `app` for deployer's own runtime, or `command` for a server of yours",
        ),
        ("command = ' '", "`command` in [worker] is empty", EMPTY_COMMAND_HINT),
        (
            "command = 'a \"b'",
            "`command` in [worker] cannot be split into words: a quote is not closed",
            "close it, or write it in other quotes",
        ),
        (
            "command = 'a \\'",
            "`command` in [worker] cannot be split into words: it ends with a backslash",
            "close it, or write it in other quotes",
        ),
        ("command = 'a {prot}'", "`command` in [worker]: unknown placeholder `{prot}`", PLACEHOLDERS_HINT),
        ("command = 'a {fd:}'", "`command` in [worker]: unknown placeholder `{fd:}`", PLACEHOLDERS_HINT),
        ("command = 'a {'", "`command` in [worker]: a single `{`", PLACEHOLDERS_HINT),
        ("command = 'a {fd}}'", "`command` in [worker]: a single `}`", PLACEHOLDERS_HINT),
        (
            "command = 'a {fd:web}'",
            '`command` in [worker]: {fd:web} names no [[listen]]: none has name = "web"',
            'add name = "web" to a [[listen]]',
        ),
        (
            "ready = 'http'",
            '`ready` in [worker]: "http" needs the path to ask for',
            'add [health] with http = "/healthz"',
        ),
        ("stop_signal = 'TERM'", '`stop_signal` in [worker]: "TERM" is not a signal', "did you mean `SIGTERM`?"),
        (
            "stop_signal = 'SIGFOO'",
            '`stop_signal` in [worker]: "SIGFOO" is not a signal',
            'for example stop_signal = "SIGTERM"',
        ),
        (
            "stop_signal = 'SIGKILL'",
            "`stop_signal` in [worker]: SIGKILL cannot be caught, so no request would be finished",
            'for example stop_signal = "SIGTERM"',
        ),
        ("umask = '088'", '`umask` in [worker]: "088" is not an octal number up to 777', 'for example umask = "022"'),
        ("umask = '1000'", '`umask` in [worker]: "1000" is not an octal number up to 777', 'for example umask = "022"'),
        (
            "rlimits = { nofiles = 1 }",
            "`rlimits` in [worker]: `nofiles` is not a limit",
            "did you mean `nofile`?",
        ),
        (
            "rlimits = { nofile = -2 }",
            "`rlimits` in [worker]: `nofile` must be from 0 to 9223372036854775807, or -1 for no limit",
            None,
        ),
        ("env = { 'A=B' = '1' }", '`env` in [worker]: "A=B" cannot be the name of a variable', None),
        ("env_file = ['']", "item 1 of `env_file` in [worker] is empty", None),
        ("user = ''", "`user` in [worker] is empty", "write a value, or remove the key"),
        (
            "ready_timeout = '1 minute'",
            '`ready_timeout` in [worker]: \'1 minute\' is not a duration: write "250ms", "3s", "5m" or "1h"',
            None,
        ),
        ("ready_timeout = '0s'", '`ready_timeout` in [worker]: "0s" must be more than 0', None),
        ("memory_limit = '512 MB'", '`memory_limit` in [worker]: \'512 MB\' is not a size: write "512M" or "2G"', None),
        ("memory_limit = '0M'", '`memory_limit` in [worker]: "0M" must be more than 0', None),
        (
            "max_age = '1d'",
            '`max_age` in [worker]: \'1d\' is not a duration: write "250ms", "3s", "5m" or "1h"',
            None,
        ),
        ("max_age = '0s'", '`max_age` in [worker]: "0s" must be more than 0', None),
        (
            "watchdog = 'x'",
            '`watchdog` in [worker]: \'x\' is not a duration: write "250ms", "3s", "5m" or "1h"',
            None,
        ),
        (
            "watchdog = '60s'",
            "`watchdog` in [worker] watches an `app`; of a `command` nobody can tell from outside that it is stuck",
            'remove it; [health] http = "/healthz" asks a server that is not ours',
        ),
        ("drain_timeout = '9000h'", '`drain_timeout` in [worker]: "9000h" is longer than a year', None),
    ],
)
def test_a_wrong_value_in_worker_is_named(tmp_path: Path, line: str, what: str, hint: str | None) -> None:
    assert refusal(tmp_path, worker(line)) == (f"3: {what}", hint)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("worker", "ready_timeout", "5"),
        ("worker", "ready_delay", "x"),
        ("worker", "drain_timeout", "-1s"),
        ("health", "interval", "0s"),
        ("health", "timeout", "s"),
        ("rollout", "soak", "3 s"),
        ("rollout", "deadline", "0ms"),
        ("hooks", "timeout", "0s"),
    ],
)
def test_every_duration_is_checked(tmp_path: Path, section: str, key: str, value: str) -> None:
    rest = "" if section == "worker" else f"[{section}]\n"
    what, _ = refusal(tmp_path, f"name = 'a'\n{LISTEN}[worker]\ncommand = 'serve'\n{rest}{key} = '{value}'\n")
    assert f": `{key}` in [{section}]: " in what


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        (
            "max_error_ratio = 2",
            "`max_error_ratio` in [rollout]: expected a number from 0 to 1, got the number 2",
            None,
        ),
        (
            "max_error_ratio = nan",
            "`max_error_ratio` in [rollout]: expected a number from 0 to 1, got the number nan",
            None,
        ),
        (
            "max_latency_ratio = '3'",
            '`max_latency_ratio` in [rollout]: expected a number of at least 0, got the text "3"',
            None,
        ),
        (
            "max_latency_ratio = inf",
            "`max_latency_ratio` in [rollout]: inf is not a number to compare with",
            "write 0 to switch it off",
        ),
        (
            "max_latency_ratio = 0.5",
            "`max_latency_ratio` in [rollout]: 0.5 would halt a release that is as quick as the one before",
            "write 1 or more; 0 switches it off",
        ),
        (
            "min_samples = 0",
            "`min_samples` in [rollout]: expected a whole number of at least 1, got the number 0",
            None,
        ),
        (
            "inconclusive = 'extend'",
            '`inconclusive` in [rollout]: "extend" needs `app` in [worker]',
            "nobody counts the answers of a `command`: write a smoke test as hooks/after_canary instead",
        ),
    ],
)
def test_how_a_canary_is_judged_is_checked(tmp_path: Path, line: str, what: str, hint: str | None) -> None:
    text = f"name = 'a'\n[worker]\ncommand = 'serve'\n[rollout]\n{line}\n{LISTEN}"
    assert refusal(tmp_path, text) == (f"5: {what}", hint)


def test_every_way_to_judge_a_canary_is_accepted(tmp_path: Path) -> None:
    for inconclusive in ("promote", "extend", "revert"):
        lines = f"max_error_ratio = 0\nmax_latency_ratio = 0\nmin_samples = 1\ninconclusive = '{inconclusive}'\n"
        assert accepts(tmp_path, f"name = 'a'\n[worker]\napp = 'shop:app'\n[rollout]\n{lines}{LISTEN}")


def test_what_is_allowed_is_accepted(tmp_path: Path) -> None:
    text = worker("command = 'serve {fd} {fd:web} {worker} {release} {{x}} \"${{{fd}}}\"'")
    text = text.replace("[[listen]]", '[[listen]]\nname = "web"')
    more = (
        "stop_signal = 'SIGQUIT'\numask = '0o022'\nrlimits = { nofile = -1, RLIMIT_CORE = 0 }\ndrain_timeout = '0s'\n"
        "ready = 'http'\n"
    )
    assert accepts(tmp_path, text.replace("[[listen", more + "[[listen") + "[health]\nhttp = '/up?x=1'\n")


def test_a_worker_may_have_no_sockets(tmp_path: Path) -> None:
    for ready in ("notify", "delay"):
        assert accepts(tmp_path, f"name = 'a'\n[worker]\ncommand = 'consume'\nready = '{ready}'\n")


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (
            "command = 'x'\n",
            '2: `ready` in [worker]: "listen" (the default) needs a [[listen]], and there is none',
            'add [[listen]], or write ready = "notify" or ready = "delay"',
        ),
        (
            "command = 'x'\nready = 'http'\n",
            '4: `ready` in [worker]: "http" needs a [[listen]], and there is none',
            'add [[listen]], or write ready = "notify" or ready = "delay"',
        ),
        (
            "command = 'x {fd}'\n",
            "3: `command` in [worker]: {fd} needs a [[listen]], and there is none",
            'add [[listen]] with address = "tcp://127.0.0.1:8000"',
        ),
        (
            "command = 'x'\nready = 'delay'\n[health]\nhttp = '/'\n",
            "6: `http` in [health] needs a [[listen]], and there is none",
            "add [[listen]], or remove `http`",
        ),
    ],
)
def test_what_needs_a_socket_is_refused_without_one(tmp_path: Path, text: str, what: str, hint: str) -> None:
    assert refusal(tmp_path, f"name = 'a'\n[worker]\n{text}") == (what, hint)


BASE = "name = 'a'\n[worker]\ncommand = 'x'\n" + LISTEN


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (
            BASE + "[source]\npath = '.'\ngit = 'u'\n",
            "8: `path` and `git` in [source] exclude each other",
            "keep one of them",
        ),
        (
            BASE + "[source]\nref = 'main'\n",
            "7: `ref` in [source] needs `git`",
            'add git = "URL or path", or remove `ref`',
        ),
        (
            BASE + "[source]\ngit = 'u'\nref = '--x'\n",
            '8: `ref` in [source]: "--x" starts with "-"',
            "name a branch or tag",
        ),
        (BASE + "[source]\ngit = ''\n", "7: `git` in [source] is empty", "write a value, or remove the key"),
        ("root = ''\n" + BASE, "1: `root` is empty", "write a value, or remove the key"),
        ("root = '.'\n" + BASE, "1: `root` is the source directory itself", 'write root = ".deployer"'),
        (
            BASE.replace("'a'", "'My Shop'"),
            '1: `name`: "My Shop" is not a name: use a-z, 0-9, - and _',
            'for example name = "my-shop"',
        ),
        (
            BASE + "[health]\nhttp = 'healthz'\n",
            '7: `http` in [health]: "healthz" is not a path: it starts with / and has no spaces',
            'for example http = "/healthz"',
        ),
        (
            BASE + "[[listen]]\naddress = 'localhost:80'\n",
            '7: `address` in [[listen]]: "localhost:80": the "tcp://" is missing: write "tcp://localhost:80"',
            None,
        ),
        (BASE + LISTEN, "7: `address` in [[listen]]: tcp://127.0.0.1:8000 is there twice", "remove one of the two"),
        (
            BASE + "name = 'w'\n[[listen]]\naddress = 'unix:x'\nname = 'w'\n",
            '9: `name` in [[listen]]: "w" is there twice',
            "give each [[listen]] its own name",
        ),
        (
            BASE + "name = 'a:b'\n",
            '6: `name` in [[listen]]: "a:b" is not a name: use letters, digits, . - and _',
            None,
        ),
        (
            BASE.replace("'x'", "'x {fd:wab}'") + "name = 'web'\n",
            '3: `command` in [worker]: {fd:wab} names no [[listen]]: none has name = "wab"',
            "did you mean `web`?",
        ),
    ],
)
def test_a_wrong_value_of_the_host_is_named(tmp_path: Path, text: str, what: str, hint: str | None) -> None:
    assert refusal(tmp_path, text) == (what, hint)


def test_a_unix_address_beside_the_file_is_measured_with_its_directory(tmp_path: Path) -> None:
    length = len(str(tmp_path)) + 1 + 100
    what, _ = refusal(tmp_path, BASE + f"[[listen]]\naddress = 'unix:{'x' * 100}'\n")
    assert f"the path is {length} bytes long and the kernel allows 107: {tmp_path}/xxx" in what


def test_a_root_too_long_for_its_sockets_says_its_length(tmp_path: Path) -> None:
    fits = "/" + "r" * (107 - len("/run/notify/99999999") - 1)
    assert accepts(tmp_path, f"root = '{fits}'\n{BASE}")
    what, hint = refusal(tmp_path, f"root = '{fits}r'\n{BASE}")
    assert what == (
        f"1: `root`: a socket below it needs a path of 108 bytes, 107 are allowed: {fits}r/run/notify/99999999"
    )
    assert hint == 'set `root` to a shorter path, for example root = "/var/lib/a"'


def test_a_root_that_is_not_written_is_refused_without_a_line(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    what, _ = refusal(deep, BASE)
    assert what.startswith(" `root`: a socket below it needs a path of ")


def test_limits_have_three_spellings() -> None:
    assert rlimit("nofile") == rlimit("NOFILE") == rlimit("RLIMIT_NOFILE") == resource.RLIMIT_NOFILE
    assert rlimit("files") is rlimit("rlimit_nofile") is rlimit("RLIMIT_nofile") is None


def test_any_text_has_an_allowed_name_near_it() -> None:
    assert [slug(text) for text in ("My Shop!", "a_b-1", "é")] == ["my-shop", "a_b-1", "app"]


def test_an_empty_hook_is_refused(tmp_path: Path) -> None:
    text = f"name = 'a'\n{LISTEN}[worker]\ncommand = 'serve'\n[hooks]\nafter_canary = ''\n"
    assert refusal(tmp_path, text) == ("7: `after_canary` in [hooks] is empty", "write a command, or remove the key")


def test_the_watchdog_of_an_app(tmp_path: Path) -> None:
    """A minute unless something else is said; off with "0s", and nothing so short that a busy machine looks hung."""
    app = worker("app = 'shop:app'")
    path = tmp_path / "deployer.toml"
    for line, patience in (("", "60s"), ("watchdog = '0s'\n", "0s"), ("watchdog = '2s'\n", "2s")):
        path.write_text(app.replace("[[listen", f"{line}[[listen"))
        assert load(path).config.worker.patience == patience
    assert refusal(tmp_path, app.replace("[[listen", "watchdog = '500ms'\n[[listen")) == (
        '4: `watchdog` in [worker]: "500ms" is less than 2s',
        'for example watchdog = "60s"; "0s" is off',
    )
    path.write_text(worker("watchdog = '0s'"))
    assert load(path).config.worker.patience == "0s"


# What an `app` of its own runtime has besides


def app(line: str, rollout: str = "") -> str:
    return f"name = 'a'\n[worker]\n{line}\napp = 'shop:app'\n{LISTEN}[rollout]\n{rollout}\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (worker("preload = true"), "`preload` in [worker] is for an `app`, not for a `command`"),
        (worker("post_fork = 'a:b'"), "`post_fork` in [worker] is for an `app`, not for a `command`"),
        (app("post_fork = 'a b'"), '`post_fork` in [worker]: "a b" does not name a function'),
        (app("post_fork = 'a:b()'"), '`post_fork` in [worker]: "a:b()" does not name a function'),
        (app("", "standby = '1m'"), "`standby` in [rollout] keeps a template"),
        (app("preload = true", "standby = 'long'"), "`standby` in [rollout]: 'long' is not a duration"),
        (app("", "warmup = ['/', 'x']"), '`warmup` in [rollout]: "x" is not a path'),
        (app("", "warmup = ['/a b']"), '`warmup` in [rollout]: "/a b" is not a path'),
        (app("", "warmup = ['/']\npreflight = false"), "`warmup` in [rollout] is done by the preflight, which is off"),
    ],
)
def test_what_belongs_to_the_preflight_and_to_templates(tmp_path: Path, text: str, what: str) -> None:
    assert what in refusal(tmp_path, text)[0]


def test_templates_and_warm_up_as_they_are_meant(tmp_path: Path) -> None:
    assert accepts(tmp_path, app("preload = true\npost_fork = 'shop.hooks:forked'", "standby = '10m'\nwarmup = ['/a']"))


def test_an_app_drains_on_some_signals_only(tmp_path: Path) -> None:
    """Another one would end it amid its requests; a command may make of one what it likes."""
    signals = "name = 'a'\n[worker]\nstop_signal = '{}'\n{}\n" + LISTEN
    assert refusal(tmp_path, signals.format("SIGHUP", "app = 'a:b'")) == (
        "3: `stop_signal` in [worker]: an `app` drains on SIGTERM, SIGINT, SIGQUIT; SIGHUP would cut it off",
        'for example stop_signal = "SIGTERM"',
    )
    assert accepts(tmp_path, signals.format("SIGINT", "app = 'a:b'"))
    assert accepts(tmp_path, signals.format("SIGHUP", "command = 'c'"))
