"""Every kind of source, from real servers on the loopback, through a running manager: it goes live, it answers, and
the release before comes back."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests import remotes
from tests.e2e.shop import Shop, assert_clear, git

MAKE = Callable[..., Shop]
CODE = ("server.py", "behaviour.py")


def says(shop: Shop) -> str:
    """The answer's label."""
    return shop.get()[2].decode().partition(" release")[0]


def tree_digest(shop: Shop, release: str) -> str:
    shown = json.loads(shop.run("releases", "show", release, "--json", code=0).out)
    digest: str = shown["info"]["tree_digest"]
    return digest


def up(shop: Shop) -> None:
    shop.up(label="first")
    shop.assert_serves("v1")


def put_second_aside(shop: Shop, place: Path) -> Path:
    """The second release's files, nowhere near the cluster: what is deployed can only have come from the server."""
    shop.write(label="second")
    place.mkdir(parents=True)
    for name in CODE:
        shutil.copy(shop.directory / name, place / name)
    shop.write(label="first")
    return place


def deployed_and_taken_back(shop: Shop, *words: str, name: str = "v2") -> None:
    """`deployer deploy WORDS` is answered by the new release; `deployer rollback` by the one before."""
    shop.run("deploy", *words, code=0)
    shop.assert_serves(name)
    assert says(shop) == "second"
    shop.run("rollback", code=0)
    shop.assert_serves("v1")
    assert says(shop) == "first"


def test_an_archive_beside_it(shop: MAKE) -> None:
    """`deployer deploy ./shop-1.tar.gz`, of a plain tar; with the digest of another file it is refused."""
    made = shop()
    up(made)
    files = put_second_aside(made, made.base / "second")
    made_by_tar = shutil.make_archive(str(made.directory / "shop-1"), "gztar", files)
    wrong = made.run("deploy", "./shop-1.tar.gz", "--sha256", "0" * 64)
    assert_clear(wrong, 6, "is not the artifact that was meant", "0" * 64)
    made.assert_serves("v1")
    assert Path(made_by_tar).name == "shop-1.tar.gz"
    deployed_and_taken_back(made, "./shop-1.tar.gz", name="v3")  # v2 was never made


def test_an_archive_over_https(shop: MAKE) -> None:
    """The supervisor trusts the server by the SSL_CERT_FILE of its environment; another's certificate is refused."""
    made = shop()
    authority = remotes.authority(made.base / "ca")
    made.env["SSL_CERT_FILE"] = str(authority.file)
    up(made)
    served = made.base / "served"
    archive = Path(shutil.make_archive(str(served / "shop"), "zip", put_second_aside(made, made.base / "second")))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    other = authority.certificate("other", holds="DNS:elsewhere.example.org")
    with (
        remotes.serve(remotes.files(served), authority.certificate("good")) as (_, url),
        remotes.serve(remotes.files(served), other) as (_, wrong),
    ):
        refused = made.run("deploy", f"{wrong}/shop.zip", "--sha256", digest)
        assert_clear(refused, 6, f"cannot download {wrong}/shop.zip", "certificate", "IP address mismatch")
        assert_clear(made.run("deploy", f"{url}/shop.zip"), 2, "needs --sha256")
        made.assert_serves("v1")
        deployed_and_taken_back(made, f"{url}/shop.zip", "--sha256", digest, name="v3")


def test_packed_by_one_cluster_and_deployed_by_another(shop: MAKE) -> None:
    """The same tree on both: the digest that the first shows is the second's."""
    builder, server = shop(), shop()
    up(builder)
    up(server)
    builder.write(label="second")
    artifact = server.base / "shop.tar.gz"
    packed = json.loads(builder.run("pack", "-o", str(artifact), "--json", code=0).out)
    builder.run("deploy", code=0)
    builder.assert_serves("v2")
    deployed_and_taken_back(server, str(artifact), "--sha256", packed["sha256"])
    assert tree_digest(server, "v2") == tree_digest(builder, "v2") == packed["tree_digest"]
    assert tree_digest(server, "v1") != tree_digest(server, "v2")


def test_a_version_of_a_package(shop: MAKE) -> None:
    """`deployer deploy shop==1.2` from the index of [source]; one that is not there leaves all as it was."""
    made = shop()
    index = made.base / "index"
    second = put_second_aside(made, made.base / "second")
    with remotes.serve(remotes.files(index)) as (_, url):
        made.toml["extra"] = f'\n[source]\npackage = "shop==1.1"\nindex_url = "{url}/simple/"\n'
        made.write(label="first")
        wheel(index / "simple/shop", "1.1", made.directory)
        wheel(index / "simple/shop", "1.2", second)
        for name in CODE:
            (made.directory / name).unlink()
        made.run("up", code=0)
        made.assert_serves("v1")
        assert_clear(made.run("deploy", "shop==9.9"), 6, "cannot install shop==9.9", "1.2")
        made.assert_serves("v1")
        deployed_and_taken_back(made, "shop==1.2", name="v3")


def wheel(directory: Path, version: str, files: Path) -> None:
    """The server's modules at the top of a wheel, as they lie in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"shop-{version}.dist-info"
    texts = {name: (files / name).read_text() for name in CODE} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: shop\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*texts, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / f"shop-{version}-py3-none-any.whl", "w") as made:
        for name, text in {**texts, f"{info}/RECORD": record}.items():
            made.writestr(name, text)


def test_a_repository_by_its_url(shop: MAKE) -> None:
    """git over http: the default branch, then a commit of it by its id, pushed after the first was live."""
    made = shop()
    up(made)
    work = put_second_aside(made, made.base / "work")
    bare = made.base / "repositories/shop.git"
    git(work, "init", "-q", "-b", "main")
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "Second")
    git(made.base, "clone", "-q", "--bare", str(work), str(bare))
    with remotes.serve(remotes.Repositories(bare.parent).handler()) as (server, url):
        deployed_and_taken_back(made, f"{url}/shop.git")
        assert made.releases()["v2"]["subject"] == "Second"
        (work / "behaviour.py").write_text((work / "behaviour.py").read_text().replace("second", "third"))
        git(work, "commit", "-q", "-a", "-m", "Third")
        git(work, "push", "-q", str(bare), "main")
        made.run("deploy", f"{url}/shop.git", "--ref", git(work, "rev-parse", "HEAD"), code=0)
        made.assert_serves("v3")
        assert says(made) == "third"
    assert server.errors == []
