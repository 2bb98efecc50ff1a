"""Kill commands at random moments and finish them: `python -m tests.proofs.kills FOLDER --kills 1000 [--command run ...]`.

Each trial starts one command of `COMMANDS` on a root of its own in FOLDER, in a process that has done its imports, and kills it
(SIGKILL) at a random moment between a tenth and the whole of the time that it takes undisturbed, one time in four twice; with
every process that it started, but in one trial of three without: those must end by themselves. The same command then runs to its
end. Its outcome must equal that of the command that was never killed, `tagcos check` must find nothing, and after `tagcos gc` no
temporary file may be left.

`--signal INT` and `--signal TERM` interrupt instead: the command must end within MOST_SECONDS with exit code 130 or 143 and one
line that says how to go on, without a traceback, and the rest is as above.

`--signal WORKER` kills worker processes of Ray, one to three at random moments of a run, and neither the run nor Ray itself: the
run must go on to its end, or stop with exit code 2 and say that workers were lost one after the other, and the rest is as above.

Trials are appended to FOLDER/kills.jsonl, so that the same command goes on where it was; the table at the end counts all of them.
A failed trial ends the proof and leaves its folder, FOLDER/trial, as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from storage import check
from storage.catalog import selections
from storage.gc import orphans, sweep
from storage.root import Root, open_root
from tests.flows.conftest import SMALL, TOPICS, conversation
from tests.flows.processes import ended, start
from tests.models import tiny_model, tiny_tokenizer

OLD = Path(__file__).parents[1] / "storage" / "root-schema-8.tar.gz"
NEWEST = "SELECT run_id FROM runs WHERE status = 'complete' ORDER BY finished_at DESC, run_id DESC LIMIT 1"
SIGNALS = {"KILL": "SIGKILL", "INT": "SIGINT", "TERM": "SIGTERM", "WORKER": "Ray workers"}  # and their columns in the table
ENDED = {"INT": 130, "TERM": 143}
MOST_SECONDS = 10.0  # from a signal to the end of the process, on a machine that does other work
WORKER_SECONDS = 60.0  # from the kill of a command to the end of its workers, which look for it once they have started
# what a write that was cut off may leave: .tmp- of the root's files, .partial and .old of exports and reports elsewhere
TEMPORARY = re.compile(r"\.tmp-|\.partial$|\.old$")


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Parameters
    ----------
    arguments
        Of `tagcos`, given the folder of a trial.
    outcome
        Its result, read from the folder of the trial: equal for equal work.
    begun
        Whether its root is a copy of one with complete runs.
    prepare
        Further changes of the folder before it starts.
    """

    arguments: Callable[[Path], list[str]]
    outcome: Callable[[Path], object]
    begun: bool = True
    prepare: Callable[[Path], None] = lambda folder: None


def run_arguments(folder: Path, *more: str) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    model = folder.parent / "model"
    return ["run", str(folder / "pool"), "--root", str(folder / "root"), "--model", str(model), "--heldout=0.1", *flags, *more]


def opened(folder: Path) -> Root:
    return open_root(str(folder / "root"), create=False)


def selection(folder: Path) -> object:
    """The selection of the newest complete run. A command that was killed as it exited makes a second run with the same one."""
    root = opened(folder)
    frame = selections.selection(root.catalog, root.catalog.read(NEWEST).item())
    return digest(frame.drop("run_id").sort("group_id", "rank").write_ndjson().encode())


def files_in(folder: Path, *, names_only: bool = False) -> object:
    """Every file with the digest of its content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), "" if names_only else digest(path.read_bytes())) for path in found]


def pruned(folder: Path) -> object:
    """What is left of a root after `tagcos gc`: runs, and names of files. The bytes of catalogs differ between processes."""
    runs = opened(folder).catalog.read("SELECT run_id FROM runs ORDER BY ALL")["run_id"].to_list()
    return runs, files_in(folder / "root", names_only=True)


def forgotten(folder: Path) -> object:
    """Files that still hold the forgotten text, and the catalog's list."""
    text = conversation("sums", 3)[0]["content"].encode()
    holding = [str(path) for path in (folder / "root").rglob("*") if path.is_file() and text in path.read_bytes()]
    return holding, opened(folder).catalog.read("SELECT example_id FROM forgotten")["example_id"].to_list()


def diagnosed(folder: Path) -> object:
    frame = opened(folder).catalog.read(
        "SELECT COLUMNS(lambda c: c NOT IN ('run_id', 'seconds', 'measured_at')) FROM diagnostics"
    )
    return digest(frame.sort(pl.all()).write_ndjson().encode())


def evaluated(folder: Path) -> object:
    frame = opened(folder).catalog.read("SELECT method, seed, measure, part, value FROM evaluation_scores").sort(pl.all())
    return digest(frame.write_ndjson().encode())


def migrated(folder: Path) -> object:
    catalog = opened(folder).catalog
    columns = catalog.read("SELECT table_name, column_name, data_type FROM duckdb_columns() ORDER BY ALL").rows()
    return columns, catalog.read("SELECT version FROM migrations ORDER BY ALL").rows()


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write_pool(folder: Path, rows: range, name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in rows]
        (folder / f"{name}{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def damage(folder: Path) -> None:
    """Overwrite a byte of regrouped features, which a repair writes again from the segments."""
    chunks = (folder / "root" / "clusterings").rglob("features/c*")
    chunk = max((path for path in chunks if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)


def leave_behind(folder: Path) -> None:
    """Add a file of a feature space that no run knows."""
    stray = folder / "root" / "spaces" / "space-of-nobody" / "c0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left behind")


def unpack_old(folder: Path) -> None:
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")


def on_root(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: [arguments[0], "--root", str(folder / "root"), *arguments[1:]]


def forget_arguments(folder: Path) -> list[str]:
    query = "SELECT example_id FROM occurrences JOIN files USING (file_id) WHERE url LIKE '%sums.jsonl' AND row = 3"
    return [*on_root("forget", "--yes")(folder), opened(folder).catalog.read(query).item()]


COMMANDS = {
    "run": Command(run_arguments, selection, begun=False),
    "run --workers 2": Command(lambda folder: run_arguments(folder, "--workers=2"), selection, begun=False),
    "run --run-on ray": Command(
        lambda folder: run_arguments(folder, "--run-on=ray", "--workers=2", "--threads=1", "--block-rows=8"),
        selection,
        begun=False,
    ),
    "refresh": Command(run_arguments, selection, prepare=lambda folder: write_pool(folder / "pool", range(100, 115), "more-")),
    "select": Command(on_root("select", "--method", "omp", "--count", "9"), selection),
    "diagnose": Command(on_root("diagnose"), diagnosed),
    "evaluate": Command(
        on_root("evaluate", "--method", "random", "--seeds", "2", "--steps", "3", "--fraction", "0.1", "--regime", "steps"),
        evaluated,
    ),
    "export": Command(
        lambda folder: [*on_root("export", "--format", "datasets")(folder), "--out", str(folder / "out")],
        lambda folder: files_in(folder / "out"),
    ),
    "report": Command(
        lambda folder: [*on_root("report")(folder), "--out", str(folder / "out" / "page.html")],
        lambda folder: files_in(folder / "out"),
    ),
    "check --repair": Command(
        on_root("check", "--repair"), lambda folder: files_in(folder / "root" / "clusterings"), prepare=damage
    ),
    "gc": Command(on_root("gc", "--unnamed", "--yes"), pruned, prepare=leave_behind),
    "forget": Command(forget_arguments, forgotten),
    "migrate": Command(on_root("gc", "--yes"), migrated, begun=False, prepare=unpack_old),
}


RAY = ("run --run-on ray",)  # commands whose workers `--signal WORKER` kills, and no other signal by default


def ray_workers(driver: int) -> list[int]:
    """Processes that hold a worker of ours among the descendants of a process."""
    children: dict[int, list[int]] = {}
    names: dict[int, bytes] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(place.name))
    found, waiting = [], [driver]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            if names[child].startswith(b"ray::RayWorker"):
                found.append(child)
    return sorted(found)


def of_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            state, _, _, own = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(place.name))
    return found


def finish(command: Sequence[str], log: Path) -> float:
    """Run to the end; returns seconds."""
    begin = time.perf_counter()
    code = ended(start(command, log, session=True), 600)
    if code != 0:
        raise RuntimeError(f"tagcos {' '.join(command)} ended with {code}: {log.read_text(encoding='utf-8')[-3000:]}")
    return time.perf_counter() - begin


class Proof:
    """Trials in a folder: the reference of every command, and a record of what was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = self.folder / "kills.jsonl"
        self.log = self.folder / "log"
        self.references = self.folder / "references"
        if not (self.folder / "model" / "config.json").exists():
            tiny_model("llama").save_pretrained(self.folder / "model")
            tiny_tokenizer().save_pretrained(self.folder / "model")

    def trials(self) -> list[dict[str, Any]]:
        """Those that are recorded."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]

    def begun(self) -> Path:
        """The folder that trials copy: a run, a selection without a name, a report and an export."""
        begun = self.folder / "begun"
        if not (begun / "complete").exists():
            shutil.rmtree(begun, ignore_errors=True)
            write_pool(begun / "pool", range(40))
            finish(run_arguments(begun), self.log)
            for more in (["select", "--method", "random"], ["report"], ["export", "--out", str(begun / "root/exports/a.jsonl")]):
                finish(on_root(*more)(begun), self.log)
            (begun / "complete").touch()
        return begun

    def fresh(self, name: str) -> Path:
        """The folder of one trial of a command, prepared."""
        command, folder = COMMANDS[name], self.folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        if command.begun:
            shutil.copytree(self.begun(), folder)
        else:
            write_pool(folder / "pool", range(40))
        command.prepare(folder)
        return folder

    def keep_reference(self, name: str, seconds: float, outcome: object) -> None:
        """Keep how long a command takes at most, and its result."""
        self.references.mkdir(exist_ok=True)
        (self.references / f"{name}.json").write_text(json.dumps([seconds, outcome]), encoding="utf-8")

    def reference(self, name: str) -> tuple[float, object]:
        """(seconds, outcome) of a command that is not killed."""
        kept = self.references / f"{name}.json"
        if not kept.exists():
            folder = self.fresh(name)
            seconds = finish(COMMANDS[name].arguments(folder), self.log)
            self.keep_reference(name, seconds, COMMANDS[name].outcome(folder))
        seconds, outcome = json.loads(kept.read_text(encoding="utf-8"))
        return seconds, outcome

    def trial(self, name: str, number: int, how: str = "KILL") -> dict[str, Any]:
        """Kill a command, finish it, and compare; a difference is an AssertionError."""
        seconds, wanted = self.reference(name)
        folder = self.fresh(name)
        arguments = COMMANDS[name].arguments(folder)
        rng = random.Random(f"{name} {how} {number}")
        alone = rng.random() < 1 / 3
        done: dict[str, Any] = {
            "command": name,
            "signal": how,
            "number": number,
            "of": round(seconds, 3),
            "kills": [],
            "took": [],
        }
        if how == "WORKER":
            done["kills"], done["stopped"] = self.kill_workers(arguments, rng)
        for _ in range(0 if how == "WORKER" else 1 + (rng.random() < 0.25)):
            after = rng.uniform(seconds / 10, seconds)
            took = self.kill(arguments, after, how, alone=alone)
            if took is None:
                if not done["kills"]:  # the whole of it takes less than when it was timed
                    self.keep_reference(name, after, wanted)
                break
            done["kills"].append(round(after, 3))
            done["took"].append(round(took, 3))
        where = f"{name}, {how} after {done['kills']} s, see {folder}"
        finish(arguments, self.log)
        found = json.loads(json.dumps(COMMANDS[name].outcome(folder)))
        assert found == wanted, f"{where}: {found} instead of {wanted}"
        root = opened(folder)
        sweep(root, orphans(root))
        assert check.check(root) == [], where
        assert [path for path in folder.rglob("*") if TEMPORARY.search(path.name)] == [], where
        return done

    def kill(self, arguments: Sequence[str], after: float, how: str, *, alone: bool = False) -> float | None:
        """Seconds that a command took to end after its signal; None if it had ended before. alone: kill no process it started."""
        log = self.folder / "interrupted"
        log.write_bytes(b"")
        process = start(arguments, log, session=True)
        assert process.pid
        if ended(process, after) is None:
            if how == "TERM":  # as `kill` does; a terminal's Ctrl-C reaches every process
                process.terminate()
            elif how == "KILL" and alone:
                process.kill()
            else:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.Signals[f"SIG{how}"])
        begin = time.perf_counter()
        code = ended(process, 60)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
        took, text = time.perf_counter() - begin, log.read_text(encoding="utf-8")
        while (left := of_session(process.pid)) and time.perf_counter() - begin < took + WORKER_SECONDS:
            time.sleep(0.1)
        assert not left, f"tagcos {' '.join(arguments)}, {how} after {after:.3f} s: processes {left} are left"
        where = f"tagcos {' '.join(arguments)}, {how} after {after:.3f} s: exit code {code}, {took:.1f} s later: {text[-6000:]}"
        if code == 0:
            assert how == "KILL" or took < MOST_SECONDS / 5, f"the signal was lost: {where}"
            return None
        assert code == (-signal.SIGKILL if how == "KILL" else ENDED[how]), where
        if how != "KILL":
            assert took < MOST_SECONDS, where
            assert len(re.findall("Go on with the same command:|To do the rest:|To do it again:", text)) == 1, where
            assert not re.search("Traceback|Exception ignored|Error:", text), where
        return took

    def kill_workers(self, arguments: Sequence[str], rng: random.Random) -> tuple[list[float], bool]:
        """Seconds after the start of a command at which workers of Ray were killed, and whether it stopped for that."""
        log = self.folder / "interrupted"
        log.write_bytes(b"")
        process, begin, killed = start(arguments, log, session=True), time.perf_counter(), []
        assert process.pid
        for _ in range(rng.randint(1, 3)):
            while process.is_alive() and not ray_workers(process.pid):
                time.sleep(0.1)
            if ended(process, rng.uniform(0, 6)) is None and (workers := ray_workers(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    killed.append(round(time.perf_counter() - begin, 3))
        code = ended(process, 600)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
        text = log.read_text(encoding="utf-8")
        assert code == 0 or (code == 2 and "were lost one after the other" in text), f"exit code {code}: {text[-6000:]}"
        return killed, code == 2

    def go_on(self, kills: int, names: Sequence[str], how: str) -> None:
        """Make trials, the commands in turn, until so many were killed."""
        trials = [trial for trial in self.trials() if trial["signal"] == how and trial["command"] in names]
        killed, number = sum(len(trial["kills"]) for trial in trials), len(trials)
        while killed < kills:
            trial = self.trial(names[number % len(names)], number, how)
            with self.record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(trial) + "\n")
            killed, number = killed + len(trial["kills"]), number + 1
            print(f"{killed:,} of {kills:,}: {trial['command']}, {how} after {trial['kills']} of {trial['of']} s", flush=True)

    def table(self) -> str:
        """Kills by command, as Markdown."""
        trials = self.trials()
        counts: Counter[tuple[str, str]] = Counter()
        for trial in trials:
            counts[trial["command"], trial["signal"]] += len(trial["kills"])
        ways = [how for how in SIGNALS if any(signalled == how for _, signalled in counts)]
        lines = ["| command | trials | " + " | ".join(SIGNALS[how] for how in ways) + " |", "|---|" + "--:|" * (1 + len(ways))]
        for name in COMMANDS:
            number = sum(trial["command"] == name for trial in trials)
            if number:
                lines.append(f"| `{name}` | {number:,} | " + " | ".join(f"{counts[name, how]:,}" for how in ways) + " |")
        whole = [f"{sum(counts[name, how] for name in COMMANDS):,}" for how in ways]
        lines.append(f"| all | {len(trials):,} | " + " | ".join(whole) + " |")
        took = [seconds for trial in trials if trial["signal"] in ENDED for seconds in trial["took"]]
        if took:
            lines.append(f"\nLongest time from SIGINT or SIGTERM to the end: {max(took):.1f} s.")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=1000, help="in all, with those that FOLDER has recorded")
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="by default all, in turn")
    parser.add_argument("--signal", choices=list(SIGNALS), default="KILL")
    chosen = parser.parse_args()
    proof = Proof(chosen.folder)
    names = [name for name in COMMANDS if (name in RAY) == (chosen.signal == "WORKER")]
    proof.go_on(chosen.kills, chosen.command or names, chosen.signal)
    print(proof.table())


if __name__ == "__main__":
    main()
