"""Run `tagcos` commands and report which files, processes and hosts Python touched: `python -m tests.flows.audited FILE`.

FILE holds a JSON list of commands, each a list of arguments of `tagcos`. The report is appended to FILE.report, one JSON list
[event, argument, ...] a line. Events are Python's own (docs.python.org/3/library/audit_events.html); files that DuckDB, Polars
and other native code open without Python are not among them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

CHANGES = {"os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.link", "os.symlink", "os.rename"}
CALLS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
NOTED = {*CHANGES, *CALLS, *STARTS, "pickle.find_class"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    file = sys.argv[1]
    with open(file, encoding="utf-8") as commands:
        wanted = json.load(commands)
    report = os.open(f"{file}.report", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not ((flags or 0) & WRITING or set(str(mode or "")) & set("wax+")):
                return
            arguments = (os.fsdecode(path),)
        elif event not in NOTED:
            return
        os.write(report, (json.dumps([event, *map(str, arguments)]) + "\n").encode())

    sys.addaudithook(note)
    from flows.cli.main import main as tagcos

    for command in wanted:
        sys.argv = ["tagcos", *command]
        try:
            tagcos()
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
