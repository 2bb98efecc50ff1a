"""The README's picture: the top of the report page of a small run.

`python -m tests.flows.report_picture docs/images/report.png` runs on the demo's 400 examples with a tiny random model;
`... FILE.png ROOT` takes the picture of the newest run of a root, such as that of `tagcos demo`. It needs a browser
(tests/pages.py) and Pillow, which matplotlib brings.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from flows import pipeline
from flows.compare import diagnose
from flows.demo.data import write_demo_data
from flows.progress import SilentReporter
from flows.report.build import write_report
from storage.catalog import runs
from storage.root import open_root
from tagcos_stream.config import load_settings
from tests.models import tiny_model, tiny_tokenizer
from tests.pages import browser

WIDTH, HEIGHT = 1100, 1420  # pixels
COLOURS = 128


def small_run(folder: Path) -> str:
    """A root with two runs, the second on a pool that grew, and a diagnosis of it."""
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    files = [str(path) for path in write_demo_data(folder / "demo-data", per_family=68)]
    settings = {"root": str(folder / "my-pool"), "model": str(folder / "model"), "fraction": 0.1, "clusters": 8}
    settings |= {"max_length": 256, "warmup_examples": 32, "dim": 512}
    for sources in (files[:-1], files):
        pipeline.run(load_settings(settings | {"sources": tuple(sources)}), SilentReporter())
    diagnose.diagnose(str(folder / "my-pool"), reporter=SilentReporter(), fractions=(0.05, 0.1), seeds=(0,))
    return str(folder / "my-pool")


def take_picture(root: str, to: Path) -> None:
    opened = open_root(root, create=False)
    place, _ = write_report(opened, runs.find_run(opened.catalog, "latest"))
    to.parent.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        chromium.open(Path(place).absolute(), width=WIDTH)
        chromium.run("document.querySelectorAll('details').forEach((e) => { e.open = false })")  # plots before tables
        chromium.picture(to)
    with Image.open(to) as whole:
        top = whole.convert("RGB").crop((0, 0, whole.width, min(whole.height, HEIGHT)))
    top.quantize(COLOURS, dither=Image.Dither.NONE).save(to, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        take_picture(sys.argv[2], Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            take_picture(small_run(Path(temporary)), Path(sys.argv[1]))
