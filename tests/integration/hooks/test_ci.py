"""The deploy step of CI systems: the scripts of action.yml and gitlab.yml, run as a runner does, on a real cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster

CI = Path(__file__).resolve().parents[3] / "hooks" / "ci"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOYER_", "GITHUB_", "GITLAB_", "CI", "INPUT_"))}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(count=2) as made:
        made.up()
        yield made


def shell(cluster: Cluster, script: str, *, ssh: bool = False, **env: str) -> Any:
    """`sh -e`, as runners call it, from a directory that is not the cluster's. `ssh`: a stand-in on the PATH that does
    with its last word what sshd does: hands it to a shell at home, with an environment of its own."""
    programs = cluster.base / "bin"
    programs.mkdir(exist_ok=True)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    if ssh:
        fake = programs / "ssh"
        fake.write_text(
            f'#!/bin/sh\necho "$@" >> {cluster.base}/ssh\nfor last; do :; done\n'
            f'cd / && env -i PATH="{path}" sh -c "$last"\n'
        )
        fake.chmod(0o755)
    return subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=cluster.base,
        env=CLEAN | {"PATH": path} | env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def action(cluster: Cluster, *, ssh: bool = False, **inputs: str) -> tuple[Any, dict[str, str], str]:
    """The composite action's one step: (how it ended, its outputs, the job summary)."""
    text = (CI / "action.yml").read_text()
    (script,) = re.findall(r"^      run: (.+)$", text, re.MULTILINE)
    known = re.findall(r"^        (INPUT_\w+): \$\{\{ inputs\.([\w-]+) \}\}$", text, re.MULTILINE)
    declared = re.findall(r"^  ([\w-]+):\n    description: .+\n    default: \"?([^\"\n]*)\"?$", text, re.MULTILINE)
    assert {name for _, name in known} == {name for name, _ in declared}, "each input reaches the script"
    defaults = {variable: dict(declared)[name] for variable, name in known}
    output, summary = cluster.base / "output", cluster.base / "summary"
    done = shell(
        cluster,
        script,
        ssh=ssh,
        GITHUB_ACTIONS="true",
        GITHUB_ACTOR="ann",
        GITHUB_RUN_ID="42",
        GITHUB_ACTION_PATH=str(CI),
        GITHUB_OUTPUT=str(output),
        GITHUB_STEP_SUMMARY=str(summary),
        **(defaults | inputs),
    )
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done, outputs, summary.read_text() if summary.exists() else ""


def test_the_action_deploys_and_says_what_serves(cluster: Cluster) -> None:
    cluster.write(label="two")
    done, outputs, summary = action(cluster, INPUT_CONFIG=str(cluster.directory / "deployer.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs == {"exit-code": "0", "serving": "v2"}
    assert "v2 is live" in summary
    assert cluster.release_served() == "v2"
    assert "ann (GitHub run 42)" in cluster.run("history", "--json", code=0).out


def test_a_release_that_was_put_back_fails_the_job_at_the_line_that_raised(cluster: Cluster) -> None:
    cluster.write("raises_at_import", "two")
    done, outputs, summary = action(cluster, INPUT_CONFIG=str(cluster.directory / "deployer.toml"))
    assert done.returncode == 3
    assert outputs == {"exit-code": "3", "serving": "v1"}
    assert "::error file=server.py,line=" in done.stderr
    assert "v1 serves" in summary


@pytest.mark.parametrize("allow", ["true", "false"])
def test_warnings_are_annotations_and_pass_when_that_is_allowed(cluster: Cluster, allow: str) -> None:
    cluster.toml["extra"] = "\n[hooks]\nafter_rollout = 'exit 1'\n"
    cluster.write(label="two")
    done, outputs, summary = action(
        cluster, INPUT_CONFIG=str(cluster.directory / "deployer.toml"), INPUT_ALLOW_WARNINGS=allow
    )
    assert done.returncode == (0 if allow == "true" else 9), done.stderr
    assert outputs["exit-code"] == "9"
    assert "::warning title=deployer::the after_rollout hook" in done.stderr
    assert "after_rollout" in summary


def test_over_ssh_every_word_arrives_as_it_was(cluster: Cluster) -> None:
    """The directory is one that a careless quoting would break."""
    odd = cluster.base / "it's $HOME; a `dir`"
    cluster.write(label="two")
    odd.symlink_to(cluster.directory)
    config = str(cluster.directory / "deployer.toml")
    done, outputs, _ = action(
        cluster, ssh=True, INPUT_SSH="deploy@shop", INPUT_CONFIG=config, INPUT_SOURCE=str(odd), INPUT_OPTIONS="--force"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs == {"exit-code": "0", "serving": "v2"}
    assert (cluster.base / "ssh").read_text().startswith("-o BatchMode=yes -- deploy@shop env 'GITHUB_ACTIONS=true'")
    assert "ann (GitHub run 42)" in cluster.run("history", "--json", code=0).out


@pytest.mark.parametrize("ssh", [False, True], ids=["runner", "ssh"])
def test_the_job_of_gitlab_deploys_the_commit_of_its_pipeline(cluster: Cluster, ssh: bool) -> None:
    block = (CI / "gitlab.yml").read_text().split("  script:\n    - |\n")[1]
    repository = cluster.base / "repository"
    git = f"git -C {repository} -c user.name=a -c user.email=a@b"
    made = shell(
        cluster,
        f"git init -q {repository}; cp {cluster.directory}/*.py {repository}; {git} add .; "
        f"{git} commit -qm two; {git} rev-parse HEAD",
    )
    toml = cluster.directory / "deployer.toml"
    toml.write_text(f'{toml.read_text()}\n[source]\ngit = "{repository}"\n')
    done = shell(
        cluster,
        textwrap.dedent(block),
        ssh=ssh,
        GITLAB_CI="true",
        CI_PIPELINE_ID="7",
        CI_COMMIT_TITLE="it's two",
        CI_COMMIT_SHA=made.stdout.strip(),
        INPUT_CONFIG=str(toml),
        **({"INPUT_SSH": "deploy@shop"} if ssh else {}),
    )
    assert done.returncode == 0, made.stderr + done.stdout + done.stderr
    assert cluster.release_served() == "v2"
    assert "pipeline 7: it's two" in cluster.run("history", "--json", code=0).out
