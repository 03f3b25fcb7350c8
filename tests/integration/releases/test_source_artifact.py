"""Artifacts, good and ill: real archives, the real child, a real web server on the loopback."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stagekit import Repository, Stager

from deployer.releases.digest import tree_digest
from deployer.releases.pack import Packed, pack
from deployer.releases.request import Artifact, Directory

Make = Callable[[tarfile.TarFile], None]


def quiet(text: str) -> None:
    """Progress of a pack, which nobody reads here."""


def packed(source: Path, output: Path) -> Packed:
    return pack(Directory(path=str(source)), source / ".deployer", "shop", output, quiet)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, size
    return made


def refused(stager: Stager, path: Path, *texts: str) -> None:
    done = stager.run(Artifact(location=str(path)))
    assert done.exit == 6, done
    assert (done.error or {})["reason"] == "source"
    for text in texts:
        assert text in done.told
    stager.assert_nothing_left()


def test_an_artifact_is_the_same_tree_on_two_hosts(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """Packed twice: the same bytes. Unpacked on two hosts: the digest that a deploy of the directory has."""
    top = repository.path
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "link").symlink_to("app.py")
    (top / "sub/empty").mkdir(parents=True)
    (top / "grün").write_text("ü")
    (top / ".gitignore").write_text("ignored\n")
    (top / "ignored").write_text("x")
    commit = repository.commit("Second")
    one, two = packed(top, tmp_path / "a.tar.gz"), packed(top, tmp_path / "b.tar.gz")
    assert one.file.read_bytes() == two.file.read_bytes()
    assert (tmp_path / "a.tar.gz.sha256").read_text() == f"{sha256(one.file)}  a.tar.gz\n"
    assert one.manifest.commit == commit
    hosts = [stager, Stager(stager.directory, tmp_path / "other")]
    results = [host.run(Artifact(location=str(one.file), sha256=one.sha256)).result for host in hosts]
    directory = stager.run(Directory(path=str(top)), "v2").result
    assert directory is not None
    for result in results:
        assert result is not None
        assert result["tree_digest"] == directory["tree_digest"] == one.manifest.tree_digest
        assert (result["commit"], result["subject"], result["author"]) == (commit, "Second", "Ada Lovelace")
    assert stat.S_IMODE((stager.release() / "run.sh").stat().st_mode) == 0o755
    assert not (stager.release() / "ignored").exists()


def test_an_artifact_that_does_not_hold_what_it_says(stager: Stager, tmp_path: Path) -> None:
    """Somebody put a file into it; the digest of the archive was not given."""
    (stager.directory / "app.py").write_text("1")
    file = packed(stager.directory, tmp_path / "a.tar.gz").file
    data = gzip.decompress(file.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(tmp_path / "b.tar", "w") as new:
        for found in old:
            new.addfile(found, old.extractfile(found))
        new.addfile(member("more.py"), io.BytesIO())
    refused(stager, tmp_path / "b.tar", "does not hold what its .deployer-artifact.json says")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_every_format_gives_the_same_tree(stager: Stager, tmp_path: Path, mode: str) -> None:
    """Unchanged files are shared with the release before, whatever that was made of."""
    source = tmp_path / "tree"
    (source / "a").mkdir(parents=True)
    (source / "a/x").write_text("x")
    (source / "big").write_bytes(os.urandom(3 << 20))
    (source / "link").symlink_to("a/x")
    path = tmp_path / "shop"
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(source / "a/x", "a/x")
            archive.write(source / "big", "big")
            link = zipfile.ZipInfo("link")
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "a/x")
    else:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.add(source, ".")
    done = stager.run(Artifact(location=str(path)))
    assert done.result is not None, done.error
    assert done.result["tree_digest"] == tree_digest(source)
    assert stager.run(Artifact(location=str(path)), "v2").exit == 0
    for name in ("a/x", "big"):
        assert (stager.release("v1") / name).stat().st_ino == (stager.release("v2") / name).stat().st_ino


EVIL: dict[str, tuple[Make, str]] = {
    "absolute": (lambda tar: tar.addfile(member("/etc/evil")), "/etc/evil is an absolute path"),
    "dots": (lambda tar: tar.addfile(member("a/../../evil")), 'a/../../evil leaves the release by ".."'),
    "absolute link": (lambda tar: tar.addfile(member("bad", tarfile.SYMTYPE, "/etc")), "bad is a link to the absolute"),
    "leaving link": (lambda tar: tar.addfile(member("a/bad", tarfile.SYMTYPE, "../../etc")), "a/bad is a link that le"),
    "hard link": (lambda tar: tar.addfile(member("bad", tarfile.LNKTYPE, "../../etc/passwd")), "leaves the release"),
    "hard link to nothing": (
        lambda tar: tar.addfile(member("bad", tarfile.LNKTYPE, "nothing")),
        "does not come before",
    ),
    "fifo": (lambda tar: tar.addfile(member("pipe", tarfile.FIFOTYPE)), "pipe is a fifo"),
    "device": (lambda tar: tar.addfile(member("null", tarfile.CHRTYPE)), "null is a device"),
    "long name": (lambda tar: tar.addfile(member("x" * 300)), "is no name that a file can have"),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_tar_made_with_ill_will_is_refused_by_name(stager: Stager, tmp_path: Path, name: str) -> None:
    """Nothing of it stays, and the message names the member."""
    make, text = EVIL[name]
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member("good.py"), io.BytesIO())
        make(archive)
    refused(stager, tmp_path / "evil.tar", text, "evil.tar is refused")


def test_a_chain_of_links_out_of_the_tree_is_refused(stager: Stager, tmp_path: Path) -> None:
    """Each link stays inside by its words; where they lead together does not. Nothing is written through one."""
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member("p", tarfile.DIRTYPE))
        archive.addfile(member("p/up", tarfile.SYMTYPE, ".."))
        archive.addfile(member("p/out", tarfile.SYMTYPE, "up/../x"))
    refused(stager, tmp_path / "evil.tar", "p/out")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member("here", tarfile.SYMTYPE, "."))
        archive.addfile(member("here/app.py", size=1), io.BytesIO(b"1"))
    refused(stager, tmp_path / "evil.tar", "here is a file or a link in the archive, and something lies below it")


def test_bombs_are_refused_by_name(stager: Stager, tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, in every packing; and a header that has no end."""
    zeros = 300 << 20
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", compresslevel=9) as archive:
        archive.addfile(member("boom.bin", size=zeros), _Zeros(zeros))  # type: ignore[arg-type]
    refused(stager, tmp_path / "b.tar.gz", "boom.bin unpacks to more than 200 times")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("boom.bin", "w") as out:
        for _ in range(300):
            out.write(bytes(1 << 20))
    refused(stager, tmp_path / "b.zip", "boom.bin unpacks to more than 200 times")
    header = member("././@PaxHeader", tarfile.XHDTYPE, size=60 << 20).tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "b.tar").write_bytes(header + bytes(60 << 20) + bytes(1024))
    refused(stager, tmp_path / "b.tar", "header that has no end")


class _Zeros:
    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        self._left -= count
        return bytes(count)


@pytest.mark.parametrize(
    ("name", "mode", "content", "text"),
    [
        ("/etc/evil", 0o100644, "x", "/etc/evil is an absolute path"),
        ("../evil", 0o100644, "x", '../evil leaves the release by ".."'),
        ("bad", stat.S_IFLNK | 0o777, "/etc/passwd", "bad is a link to the absolute path"),
        ("bad", stat.S_IFLNK | 0o777, "../x", "bad is a link that leaves the release"),
        ("pipe", stat.S_IFIFO | 0o644, "", "pipe is no file"),
        ("null", stat.S_IFCHR | 0o644, "", "null is no file"),
    ],
)
def test_a_zip_made_with_ill_will(
    stager: Stager, tmp_path: Path, name: str, mode: int, content: str, text: str
) -> None:
    """The standard library has no filter for zips."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("good.py", "")
        archive.writestr(info, content)
    refused(stager, tmp_path / "evil.zip", text)


def test_damaged_archives_and_wrong_digests(stager: Stager, tmp_path: Path) -> None:
    """Cut short, no archive at all, another file than was meant: both digests are told."""
    (stager.directory / "app.py").write_bytes(os.urandom(100_000))
    whole = packed(stager.directory, tmp_path / "a.tar.gz").file
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:50_000])
    refused(stager, tmp_path / "cut.tar.gz", "is no tar or zip, or it is damaged")
    (tmp_path / "text.zip").write_text("no archive\n" * 100)
    refused(stager, tmp_path / "text.zip", "is no tar or zip, or it is damaged")
    refused(stager, tmp_path / "nowhere.tar", "cannot read the artifact", "No such file")
    done = stager.run(Artifact(location=str(whole), sha256="0" * 64))
    assert done.exit == 6
    assert sha256(whole) in done.told
    assert "0" * 64 in done.told


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Not into the tests' output."""

    def do_GET(self) -> None:
        if self.path == "/away.tar.gz":
            self.send_response(302)
            self.send_header("Location", "http://example.org/a.tar.gz")
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "site").mkdir()
    handler = functools.partial(_Server, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_artifact_from_a_url(stager: Stager, site: tuple[Path, str]) -> None:
    """By its digest; never from plain http elsewhere, nor by way of a redirect there."""
    (stager.directory / "app.py").write_text("1")
    file = packed(stager.directory, site[0] / "a.tar.gz").file
    url = site[1].replace("http://", "http://ci:s3cret@") + "/a.tar.gz"
    done = stager.run(Artifact(location=url, sha256=sha256(file)))
    assert done.result is not None, done.error
    assert "s3cret" not in done.result["source"] + "".join(done.progress)
    refusals = {
        f"{site[1]}/none.tar.gz": "the server answers 404",
        f"{site[1]}/away.tar.gz": "which is not https",
        "http://example.org/a.tar.gz": "only https:// is fetched",
    }
    for location, text in refusals.items():
        refusal = stager.run(Artifact(location=location, sha256="0" * 64), "v2")
        assert refusal.exit == 6
        assert text in refusal.told
    assert "has no `sha256`" in stager.run(Artifact(location=url), "v2").told
    stager.assert_nothing_left(releases=("v1",))
