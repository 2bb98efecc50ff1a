"""What the commands touch: nothing is written outside the root and the output that the user named, and no host is called.

Python's audit hook sees every file, process and connection that Python opens (tests/flows/audited.py). What native code writes is
looked for afterwards, in folders that were empty or whose files are known. Hugging Face's offline mode, which other tests set, is
off here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.flows.audited import CALLS, CHANGES, STARTS

CHECKOUT = Path(__file__).parents[2]
TWO = ("os.rename", "os.link", "os.symlink")  # events that name two paths
# classes that Numba unpickles from its own cache of compiled kernels
COMPILED = ("numba.", "numpy.", "copyreg._reconstructor", "builtins.object")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, list[list[str]]]:
    """Events of all commands of daily use in one process, with a home folder, a current folder and one for temporary files of its
    own."""
    from tests.flows.conftest import SMALL, TOPICS, conversation

    folder = tmp_path_factory.mktemp("audited")
    for name in ("pool", "home", "here", "tmp"):
        (folder / name).mkdir()
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(12)]
        (folder / "pool" / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    root = ["--root", str(folder / "root")]
    commands = [
        ["run", str(folder / "pool"), *root, "--model", str(model_folder), "--heldout", "0.1", *flags],
        ["select", *root, "--method", "random"],
        ["report", *root],
        ["export", *root, "--out", str(folder / "out" / "chosen.jsonl")],
        ["evaluate", *root, "--method", "random", "--seeds", "1", "--steps", "2", "--fraction", "0.1"],
        ["check", *root],
    ]
    file = folder / "commands.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME")
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(CHECKOUT)}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | own
    command = [sys.executable, "-m", "tests.flows.audited", str(file)]
    before = {place: contents(place) for place in (folder / "pool", model_folder)}
    done = subprocess.run(command, cwd=folder / "here", env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {place: contents(place) for place in before} == before
    lines = Path(f"{file}.report").read_text(encoding="utf-8").splitlines()
    return folder, [[part.replace(str(folder), "FOLDER") for part in json.loads(line)] for line in lines]


@pytest.fixture(scope="module")
def events(audited: tuple[Path, list[list[str]]]) -> list[list[str]]:
    return audited[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def touched(events: list[list[str]]) -> set[str]:
    """Paths that were written, made, moved or removed; of a move and a link both."""
    changes = [event for event in events if event[0] in CHANGES or event[0] == "open"]
    return {path for event in changes for path in event[1 : 3 if event[0] in TWO else 2]}


def within(path: str, *folders: str) -> bool:
    """Whether a path is one of the folders or lies in one, without a way out of it."""
    return ".." not in Path(path).parts and any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def allowed(path: str) -> bool:
    """The root, the output, temporary files, and caches of compiled code."""
    if path == "/dev/null" or path.isdigit():  # a descriptor, where a folder is removed
        return True
    if "__pycache__" in Path(path).parts:  # Python's and Numba's, beside the code, to which a checkout may be linked
        return Path(path).is_absolute() and within(os.path.realpath(path), str(CHECKOUT), sys.prefix, sys.base_prefix)
    inductor = str(Path(tempfile.gettempdir(), "torchinductor_"))  # torch's, made when it is imported
    return within(path, "FOLDER/root", "FOLDER/out", "FOLDER/tmp") or path.startswith(inductor)


def test_commands__write_nothing_outside_the_root_and_the_output(events: list[list[str]]) -> None:
    paths = touched(events)
    assert {"FOLDER/root/tagcos.json", "FOLDER/out/chosen.jsonl"} <= {path.partition(".tmp-")[0] for path in paths}
    assert sorted(path for path in paths if not allowed(path)) == []


def test_commands__leave_nothing_outside_the_root_and_the_output(audited: tuple[Path, list[list[str]]]) -> None:
    """Whoever wrote it; the sources and the model's folder were compared when the commands had ended."""
    folder = audited[0]
    assert {path.name for path in folder.iterdir()} == {
        "pool", "home", "here", "tmp", "root", "out", "commands.json", "commands.json.report"
    }  # fmt: skip
    assert [path.name for path in (folder / "out").iterdir()] == ["chosen.jsonl"]
    assert [str(path) for name in ("home", "here", "tmp") for path in (folder / name).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "path",
    [
        "FOLDER/rootless",
        "FOLDER/root/../x",
        "FOLDER/home/x",
        "/tmp/x/__pycache__/y.pyc",
        "FOLDER/x/__pycache__/y.pyc",
        "/etc/passwd",
        "x",
        "~/.cache",
    ],
)
def test_allowed__is_no_more_than_it_says(path: str) -> None:
    assert not allowed(path)


def test_commands__call_no_host(events: list[list[str]]) -> None:
    calls = [event for event in events if event[0] in CALLS]
    # urllib3 looks whether the machine has IPv6 by binding a socket to the loopback address
    assert [call for call in calls if not (call[0] == "socket.bind" and "::1" in call[2])] == []


def test_commands__start_only_their_own_compiler(events: list[list[str]]) -> None:
    started = [event[2] for event in events if event[0] in STARTS]
    # Python's ctypes.util finds libraries by ldconfig
    assert [line for line in started if "tagcos_stream.compile_ahead" not in line and "ldconfig" not in line] == []


def test_commands__unpickle_nothing_but_compiled_kernels(events: list[list[str]]) -> None:
    found = {".".join(event[1:]) for event in events if event[0] == "pickle.find_class"}
    assert sorted(name for name in found if not name.startswith(COMPILED)) == []
