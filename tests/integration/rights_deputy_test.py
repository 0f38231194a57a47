"""The broker is nobody's deputy: by path members get what lies in model folders and is theirs."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import files
from support.broker import BrokerProcess
from support.users import ALICE, BOB, GROUP, ROOT, Caller, User, as_user, needs_root

pytestmark = needs_root


@dataclass
class Place:
    """A broker with two model folders, and what lies in and beside them."""

    broker: BrokerProcess
    root: Path

    def file(self, name: str, user: User = ROOT, mode: int = 0o644, seed: int = 0) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for above in path.parents:
            if above != self.root and self.root in above.parents:
                above.chmod(0o755)
        files.write_random(path, 0.05, seed)
        os.chown(path, user.uid, user.gid)
        path.chmod(mode)
        return path

    def ask(self, user: User, path: object, type_: str = "model.load_model") -> tuple[str, str]:
        """Code and text of what a user's load by path is answered, the path itself left out."""

        def asks() -> tuple[str, str]:
            answers = set()
            for plain in (False, True):
                with Caller(self.broker, plain) as caller:
                    word = {"path": str(path)} if type_ == "model.load_model" else {}
                    reply = caller.call(type_, model=str(path), **word)
                error = reply["error"] if not reply["success"] else {"code": "", "message": ""}
                answers.add((error["code"], error["message"].replace(str(path), "PATH")))
            (answer,) = answers
            return answer

        return as_user(user, asks)


@pytest.fixture(params=["openat2", "without openat2"], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="mb-open-"))
    root.chmod(0o755)
    for name in ("a", "b", "beside"):
        (root / name).mkdir(mode=0o755)
    folders = f"{root}/a:{root}/b"
    flags = ["--group", str(GROUP), "--model-folders", folders]
    if request.param != "openat2":
        flags += ["--disable-features", "openat2"]
    broker = BrokerProcess(*flags)
    broker.folder.chmod(0o755)
    yield Place(broker.start(), root)
    broker.stop()
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def refusal(place: Place) -> tuple[str, str]:
    """The one answer, as a path gets it at which nothing is."""
    answer = place.ask(ALICE, place.root / "nowhere" / "x.safetensors")
    assert answer[0] == "permission_denied"
    return answer


def test_what_lies_in_a_folder_is_loaded_and_stays_the_askers(place: Place) -> None:
    path = place.file("a/deep/er/good.safetensors")
    assert place.ask(ALICE, path) == ("", "")
    assert place.ask(BOB, "good", "model.unload_model")[0] == "permission_denied"
    assert place.ask(BOB, path, "model.attach") == ("", "")
    with Caller(place.broker) as caller:  # the broker opened it itself, so it is found by its path
        assert caller.ok("model.get", model=str(path))["model"]["name"] == "good"


@pytest.mark.parametrize("told", ["its own path", "another file's path", "a path beside"])
def test_the_path_of_an_offered_file_counts_if_a_folder_has_it_there(
    place: Place, told: str
) -> None:
    path = place.file("a/handed.safetensors", seed=3)
    label = {
        "its own path": path,
        "another file's path": place.file("a/another.safetensors", seed=4),
        "a path beside": place.file("beside/handed.safetensors", seed=3),
    }[told]

    def hands_in() -> bool:
        with Caller(place.broker) as caller:
            return bool(caller.load(path, label=label, name="handed")["success"])

    assert as_user(ALICE, hands_in)
    try:
        found = place.ask(BOB, label, "model.get")[0]
        assert found == ("" if told == "its own path" else "not_found")
        # So is its name, once its block is gone.
        (place.broker.ram / place.broker.cli_json("show", "handed")["block"]).unlink()
        attached = place.ask(BOB, "handed", "model.attach")[0]
        assert attached == ("" if told == "its own path" else "permission_denied")
    finally:
        place.broker.cli("unload", "handed")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/same.safetensors", "sub/t.safetensors"),
        ("a/up.safetensors", "sub/../sub/t.safetensors"),
        ("a/absolute.safetensors", "{root}/a/sub/t.safetensors"),
        ("a/other.safetensors", "{root}/b/t.safetensors"),
        ("a/sideways.safetensors", "../b/t.safetensors"),
        ("a/folder", "../b"),
        ("a/chain.safetensors", "other.safetensors"),
    ],
)
def test_a_link_may_lead_within_the_folders(place: Place, link: str, target: str) -> None:
    place.file("a/sub/t.safetensors")
    place.file("b/t.safetensors", seed=1)
    if link == "a/chain.safetensors" and not (place.root / "a/other.safetensors").is_symlink():
        (place.root / "a/other.safetensors").symlink_to(place.root / "b/t.safetensors")
    path = place.root / link
    path.unlink(missing_ok=True)
    path.symlink_to(target.format(root=place.root))
    asked = path / "t.safetensors" if link == "a/folder" else path
    assert place.ask(ALICE, asked, "model.attach") == ("", "")


def unreadable(place: Place, what: str) -> Path:
    """Something that Alice may not have by its path."""
    root = place.root
    secret = place.file("beside/secret.safetensors", mode=0o600)
    place.file("beside/public.safetensors")
    path = root / "a" / what.replace(" ", "-")
    path.unlink(missing_ok=True)
    match what:
        case "beside the folders":
            return root / "beside/public.safetensors"
        case "a secret beside the folders":
            return secret
        case "up and out":
            return root / "a/../beside/public.safetensors"
        case "a link out":
            path.symlink_to(root / "beside/public.safetensors")
        case "a relative link out":
            path.symlink_to("../beside/public.safetensors")
        case "a link to a folder out":
            path.symlink_to(root / "beside")
            return path / "public.safetensors"
        case "a link to itself":
            path.symlink_to(path)
        case "a link that begins like a folder":
            (root / "about").mkdir(exist_ok=True)
            place.file("about/x.safetensors")
            path.symlink_to(root / "about/x.safetensors")
        case "a descriptor of the broker":
            path.symlink_to("/proc/self/fd/0")
        case "the root of the broker":
            path.symlink_to(f"/proc/self/root{root}/beside/public.safetensors")
        case "a magic link":
            return Path(f"/proc/{place.broker.pid}/root{root}/a/x.safetensors")
        case "a fifo":
            os.mkfifo(path, 0o644)
        case "a device":
            os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 5))
        case "a folder":
            return root / "a"
        case "a closed file":
            place.file("a/a-closed-file", mode=0o600)
        case "a file of Bob's":
            place.file("a/a-file-of-Bob's", BOB, 0o640)
            os.chown(path, BOB.uid, BOB.uid)
        case "a hard link to a secret":
            os.link(secret, path)
        case "a file in a closed folder":
            path = place.file("a/closed/x.safetensors")
            path.parent.chmod(0o700)
        case "beneath a file":
            return place.file("a/file.safetensors") / "x.safetensors"
    return path


@pytest.mark.parametrize(
    "what",
    [
        "beside the folders",
        "a secret beside the folders",
        "up and out",
        "a link out",
        "a relative link out",
        "a link to a folder out",
        "a link to itself",
        "a link that begins like a folder",
        "a descriptor of the broker",
        "the root of the broker",
        "a magic link",
        "a fifo",
        "a device",
        "a folder",
        "a closed file",
        "a file of Bob's",
        "a hard link to a secret",
        "a file in a closed folder",
        "beneath a file",
        "nothing at all",
    ],
)
@pytest.mark.parametrize("type_", ["model.load_model", "model.attach"])
def test_all_else_has_one_answer(
    place: Place, refusal: tuple[str, str], what: str, type_: str
) -> None:
    path = unreadable(place, what)
    assert place.ask(ALICE, path, type_) == refusal
    # Nor does it help that the file is loaded, by somebody who may.
    if what in ("a secret beside the folders", "a closed file"):
        with Caller(place.broker) as caller:
            assert caller.load(path)["success"]
        assert place.ask(ALICE, path, type_) == refusal
        place.broker.cli("unload", path.stem)


def test_root_may_load_any_path(place: Place) -> None:
    path = place.file("beside/roots.safetensors", mode=0o600)
    assert place.ask(ROOT, path) == ("", "")
