"""The CSV files beside the pages of measurements are whole, and the tables of the pages follow from them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tagcos_stream.evaluation.statistics import holm, paired
from tests.benchmarks.datamodelling import scores

PAGES = Path(__file__).parents[1] / "docs" / "measurements"
FILES = sorted(PAGES.glob("*.csv"))


def rows_of(name: str) -> list[dict[str, str]]:
    with (PAGES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(page: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose header begins with `first`."""
    lines = (PAGES / page).read_text(encoding="utf-8").split(f"| {first} |", 1)[1].splitlines()[2:]
    end = next(n for n, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines[:end]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_measurements__csv_files_are_rectangular_and_linked(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(set(header)) == len(header)
    assert rows
    assert {len(row) for row in rows} == {len(header)}
    linking = [page.name for page in PAGES.glob("*.md") if f"]({path.name})" in page.read_text(encoding="utf-8")]
    assert "index.md" in linking
    assert len(linking) >= 2, "the page that explains it links it, too"


def test_measurements__kills_are_those_of_the_trials() -> None:
    sent = Counter[tuple[str, ...]]()
    for row in rows_of("kill-trials.csv"):
        sent[row["command"], row["signal"], row["day"], row["start"]] += len(row["killed_at"].split())
    with_imports = [("KILL", day, "imports done") for day in ("2026-12-01", "2026-11-29")]
    earlier = [("KILL", "2026-11-29"), ("KILL", "2026-11-28"), ("INT", "2026-11-28"), ("TERM", "2026-11-28")]
    columns = [*with_imports, *((*column, "new process") for column in earlier)]
    told = {cells[0]: [int(cell) for cell in cells[1:]] for cells in table("robustness.md", "command")}
    whole = told.pop("all")
    assert told == {command: [sent[command, *column] for column in columns] for command in told}
    assert whole == [sum(column) for column in zip(*told.values(), strict=True)]


def test_measurements__bad_rows_are_those_of_the_selections() -> None:
    found = {(row["gradient"], row["method"], row["target"]): row for row in rows_of("dirty-pool-selections.csv")}
    for cells in table("targets.md", "method"):
        method = re.split(r"[`,]", cells[0])[0]
        for gradient, plain, aimed in zip(("adam-delta", "adam", "sgd"), cells[1::2], cells[2::2], strict=True):
            for target, share in (("", plain), ("clean", aimed)):
                row = found.get((gradient, method, target))
                assert (row is None) == (share == ""), (gradient, method, target)
                if row is not None:
                    assert f"{int(row['bad']) / int(row['selected']):.2f}" == share
                    assert int(row["bad"]) == sum(int(row[kind]) for kind in ("exchanged", "canned", "shuffled"))


def test_measurements__similarities_are_those_of_the_selections() -> None:
    told = {
        cells[0].replace("`", "").replace(",", ""): cells[1:]
        for cells in table("diagnosis.md", "| Jaccard | error, equal weights | fitted weights | processor, s")
    }
    rows = rows_of("settings-selections.csv")
    assert len(rows) == len(told)
    for row in rows:
        jaccard, equal, fitted, seconds = told[row["change"]]
        assert f"{float(row['jaccard']):.2f}" == jaccard
        assert [row["error_equal_weights"], row["error_fitted_weights"], row["processor_seconds"]] == [equal, fitted, seconds]
        if row["shared_with_defaults"]:
            shared, selected = int(row["shared_with_defaults"]), int(row["selected"])
            assert float(row["jaccard"]) == pytest.approx(shared / (2 * selected - shared), abs=1e-5)


def pairs_of(rows: list[dict[str, str]], one: tuple[str, str], other: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
    """(S, datasets + 1) differences of the seeds that both (method, setting) have, the loss last; and names of the datasets."""
    datasets = list(rows[0])[list(rows[0]).index("loss") + 1 :]
    of = {(row["method"], row.get("setting", ""), int(row["seed"])): row for row in rows}
    assert len(of) == len(rows)
    seeds = [seed for seed in range(9) if (*one, seed) in of and (*other, seed) in of]
    columns = (*datasets, "loss")
    return np.array([[float(of[*one, s][c]) - float(of[*other, s][c]) for c in columns] for s in seeds]), datasets


def robust(apart: np.ndarray, datasets: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """By seed: the median dataset, and the mean without the dataset that is worst to leave out, with its name."""
    by_dataset = apart[:, :-1]
    without = (by_dataset.sum(axis=1, keepdims=True) - by_dataset) / (len(datasets) - 1)
    worst = int(without.mean(axis=0).argmax())
    return np.median(by_dataset, axis=1), without[:, worst], datasets[worst]


def kind_of(text: str) -> tuple[str, str]:
    """Method and setting of a cell such as `tagcos` by `sgd`, `random` with its shares."""
    method, _, setting = text.replace("`", "").replace(" with its shares", " by shares").partition(" by ")
    return method, setting


def told_of(values: np.ndarray) -> str:
    """Mean and interval of differences, as the tables write them."""
    pair = paired(values)
    return f"{pair.mean:+.4f}" + ("" if pair.low is None else f" [{pair.low:+.4f}, {pair.high:+.4f}]")


def summary(rows: list[dict[str, str]]) -> list[str]:
    """Of the trials of a method, as the tables write it: seeds, mean of selected examples and of tokens, loss with its error."""
    selected, tokens = (np.mean([int(row[column]) for row in rows]) for column in ("selected", "tokens"))
    losses = np.array([float(row["loss"]) for row in rows])
    error = f" ± {losses.std(ddof=1) / np.sqrt(len(losses)):.4f}" if len(losses) > 1 else ""
    return [str(len(rows)), f"{selected:.0f}", f"{tokens:,.0f}", f"{losses.mean():.4f}{error}"]


def differences(apart: np.ndarray, datasets: list[str]) -> list[str]:
    """As the tables write them: pairs, median dataset, worst mean without a dataset, mean over datasets, mean over examples."""
    median, without, worst = robust(apart, datasets)
    means = told_of(apart[:, :-1].mean(axis=1)), told_of(apart[:, -1])
    return [str(len(apart)), told_of(median), f"{told_of(without)} (`{worst}`)", *means]


def test_measurements__differences_of_the_primary_pair_are_those_of_the_trials() -> None:
    apart, datasets = pairs_of(rows_of("primary-trials.csv"), ("tagcos", ""), ("balanced", ""))
    assert {int(cells[1]) for cells in table("primary.md", "method")[:2]} == {len(apart)}
    median, without, worst = robust(apart, datasets)
    told = table("primary.md", "`tagcos` minus `balanced`")
    assert [cells[0] for cells in told] == [
        "median dataset",
        f"mean over datasets without `{worst}`, the worst case",
        "mean over datasets",
        "mean over examples",
    ]
    for values, cells in zip((median, without, apart[:, :-1].mean(axis=1), apart[:, -1]), told, strict=True):
        pair = paired(values)
        assert cells[1:] == [f"{pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]", f"{pair.p:.4f}", f"{pair.detectable:.4f}"]
    for cells in table("primary.md", "dataset"):
        pair = paired(apart[:, datasets.index(cells[0])])
        assert cells[-1] == f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"


def test_measurements__differences_of_the_follow_up_are_those_of_the_trials() -> None:
    rows = rows_of("followup-trials.csv")

    for cells in table("followup.md", "method")[:-1]:
        method, _, setting = cells[0].replace("`", "").partition(", ")
        mine = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
        assert int(cells[1]) == len(mine)
        assert f"{np.mean([float(row['loss']) for row in mine]):.4f}" == cells[4].split(" ")[0]
    for against in ("balanced", "random"):
        for cells in table("followup.md", f"minus `{against}`"):
            method, _, setting = cells[0].replace("`", "").partition(", ")
            apart, datasets = pairs_of(rows, (method, setting), (against, ""))
            median, without, worst = robust(apart, datasets)
            without_worst = f"{told_of(without)} (`{worst}"
            assert cells[1:] == [str(len(apart)), told_of(median), without_worst + "`)", told_of(apart[:, -1])]
    apart, datasets = pairs_of(rows, ("tagcos", "gain_per=row"), ("tagcos", ""))
    median, without, _ = robust(apart, datasets)
    told = table("followup.md", "gain per row minus gain per token")
    assert [cells[1] for cells in told] == [told_of(values) for values in (median, without, apart[:, -1])]


def test_measurements__differences_at_equal_examples_are_those_of_the_trials() -> None:
    rows = rows_of("equal-examples-trials.csv")

    for cells in table("equal-examples.md", "method")[:-1]:
        assert cells[1:] == summary([row for row in rows if (row["method"], row["setting"]) == kind_of(cells[0])])
    for cells in table("equal-examples.md", "minus `random`"):
        assert cells[1:] == differences(*pairs_of(rows, kind_of(cells[0]), ("random", "")))
    apart, datasets = pairs_of(rows, ("tagcos", "sgd"), ("tagcos", "adam-delta"))
    median, without, worst = robust(apart, datasets)
    told = table("equal-examples.md", "`sgd` minus `adam-delta`")
    assert told[1][0] == f"mean over datasets without `{worst}`, the worst case"
    for values, cells in zip((median, without, apart[:, :-1].mean(axis=1), apart[:, -1]), told, strict=True):
        pair = paired(values)
        assert cells[1:] == [told_of(values), f"{pair.p:.4f}", f"{pair.detectable:.4f}"]
    apart, datasets = pairs_of(rows, ("tagcos", "sgd"), ("random", ""))
    for cells in table("equal-examples.md", "dataset"):
        of = datasets.index(cells[0])
        assert cells[1] == told_of(apart[:, of])
        assert cells[2] == f"{(apart[:, of] < 0).sum()} of {len(apart)}"


@pytest.mark.parametrize("equal", ["examples", "tokens", "tokens and steps"])
def test_measurements__differences_on_more_pools_are_those_of_the_trials(equal: str) -> None:
    rows = [row for row in rows_of("more-pools-trials.csv") if row["equal"] == equal]

    for cells in table("more-pools.md", f"equal {equal}"):
        mine = [row for row in rows if ((row["method"], row["setting"]), row["pool"]) == (kind_of(cells[0]), cells[1])]
        assert cells[2:] == summary(mine)
    for cells in table("more-pools.md", f"difference, equal {equal}"):
        one, _, other = cells[0].partition(" minus ")
        pools = cells[1].split(" and ")
        parts = [pairs_of([row for row in rows if row["pool"] == pool], kind_of(one), kind_of(other)) for pool in pools]
        assert cells[2:] == differences(np.concatenate([values for values, _ in parts]), parts[0][1])


@pytest.mark.parametrize(
    ("page", "steps"), [("primary-sgd", "54"), ("primary-sgd", "16"), ("primary-sgd", "14"), ("ten-thousand", "64")]
)
def test_measurements__differences_by_plain_gradients_are_those_of_the_trials(page: str, steps: str) -> None:
    rows = [row for row in rows_of(f"{page}-trials.csv") if row["steps"] == steps]

    for cells in table(f"{page}.md", f"{steps} steps"):
        assert cells[1:] == summary([row for row in rows if (row["method"], row["setting"]) == kind_of(cells[0])])
    for cells in table(f"{page}.md", f"difference, {steps} steps"):
        one, _, other = cells[0].partition(" minus ")
        assert cells[1:] == differences(*pairs_of(rows, kind_of(one), kind_of(other)))


@pytest.mark.parametrize(("page", "steps", "by"), [("primary-sgd", "54", "sgd"), ("ten-thousand", "64", "")])
def test_measurements__datasets_by_plain_gradients_are_those_of_the_trials(page: str, steps: str, by: str) -> None:
    rows = [row for row in rows_of(f"{page}-trials.csv") if row["steps"] == steps]

    to_random, datasets = pairs_of(rows, ("tagcos", by), ("random", ""))
    to_balanced, _ = pairs_of(rows, ("tagcos", by), ("balanced", ""))
    told = table(f"{page}.md", "dataset")
    assert len(told) == len(datasets)
    for cells in told:
        name = cells[0].strip("`")
        means = [
            np.mean([float(row[name]) for row in rows if row["method"] == method])
            for method in ("base", "random", "balanced", "tagcos")
        ]
        of = datasets.index(name)
        assert cells[1:] == [*(f"{mean:.3f}" for mean in means), told_of(to_random[:, of]), told_of(to_balanced[:, of])]


def several_pools() -> dict[str, list[dict[str, str]]]:
    """Trials of 16 steps by pool; the first pool's are those of the page before."""
    first = [{**row, "pool": "0"} for row in rows_of("primary-sgd-trials.csv") if row["steps"] == "16"]
    names = [*rows_of("several-pools-trials.csv")[0]]
    found: dict[str, list[dict[str, str]]] = {}
    for row in [*first, *rows_of("several-pools-trials.csv")]:
        found.setdefault(row["pool"], []).append({name: row[name] for name in names})
    return found


def test_measurements__of_several_pools_are_those_of_the_trials() -> None:
    for cells in table("several-pools.md", "pool"):
        rows = several_pools()[cells[0]]
        of = {method: [row for row in rows if row["method"] == method] for method in ("base", "random", "balanced", "tagcos")}
        assert cells[1] == str(len(of["tagcos"]))
        assert cells[2:6] == [f"{np.mean([float(row['loss']) for row in some]):.4f}" for some in of.values()]
        chosen = [np.mean([int(row["selected"]) for row in some]) for some in list(of.values())[1:]]
        assert cells[6] == ", ".join(f"{n:.0f}" for n in chosen)


@pytest.mark.parametrize(("one", "other"), [("tagcos", "random"), ("tagcos", "balanced"), ("random", "balanced")])
def test_measurements__over_several_pools_each_counts_once(one: str, other: str) -> None:
    *by_pool, over = table("several-pools.md", f"`{one}` minus `{other}`")
    means = []
    for cells in by_pool:
        apart, datasets = pairs_of(several_pools()[cells[0].removeprefix("pool ")], (one, ""), (other, ""))
        mean = apart.mean(axis=0, keepdims=True)
        median, without, worst = robust(mean, datasets)
        numbers = (median[0], without[0], mean[0, :-1].mean(), mean[0, -1])
        told = [f"{number:+.4f}" for number in numbers]
        assert cells[1:] == [str(len(apart)), told[0], f"{told[1]} (`{worst}`)".strip("`"), *told[2:]]
        means.append(mean[0])
    median, without, worst = robust(np.array(means), datasets)
    told = [told_of(values) for values in (median, without, np.array(means)[:, :-1].mean(axis=1), np.array(means)[:, -1])]
    assert over == ["over pools", str(len(means)), told[0], f"{told[1]} (`{worst}`)".strip("`"), *told[2:]]


def test_measurements__of_trained_settings_each_pool_counts_once() -> None:
    settings = {"`ridge` 0.1": "ridge=0.1", "`ridge` 10": "ridge=10.0"}
    told = {cells[0]: cells[1:] for cells in table("settings-trained.md", "minus `ridge` 1.0")}
    over: dict[str, list[np.ndarray]] = {}
    for name, setting in settings.items():
        for pool in ("1", "2", "3", "4"):
            rows = [row for row in rows_of("settings-trials.csv") if row["pool"] == pool]
            apart, datasets = pairs_of(rows, ("tagcos", setting), ("tagcos", ""))
            assert len(apart) == 2
            mean = apart.mean(axis=0, keepdims=True)
            median, without, worst = robust(mean, datasets)
            numbers = [f"{n:+.4f}" for n in (median[0], without[0], mean[0, :-1].mean(), mean[0, -1])]
            chosen = [
                np.mean([int(r["selected"]) for r in rows if r["setting"] == s and r["seed"] in "01"]) for s in (setting, "")
            ]
            counts = f"{chosen[0]:.0f}, not {chosen[1]:.0f}"
            cells = [counts, numbers[0], f"{numbers[1]} (`{worst}`)", *numbers[2:], ""]
            assert told[f"{name}, pool {pool}".strip("`")] == [cell.strip("`") for cell in cells]
            over.setdefault(name, []).append(mean[0])
    corrected = holm([paired(np.median(np.array(means)[:, :-1], axis=1)).p or 1.0 for means in over.values()])
    for (name, means), p in zip(over.items(), corrected, strict=True):
        _, *cells = differences(np.array(means), datasets)
        assert told[f"{name}, over pools".strip("`")] == ["", *cells, f"{p:.4f}"]


def test_measurements__of_other_features_are_those_of_the_trials() -> None:
    rows = [row for row in rows_of("settings-trials.csv") if row["pool"] == "1"]
    others = ("rank 128", "3 checkpoints")
    for cells, setting in zip(table("settings-trained.md", "features"), ("", *others), strict=True):
        assert cells[1:] == summary([row for row in rows if row["setting"] == setting])
    for cells, setting in zip(table("settings-trained.md", "difference"), others, strict=True):
        assert cells[1:] == differences(*pairs_of(rows, ("tagcos", setting), ("tagcos", "")))


def test_measurements__scores_of_tasks_are_those_of_the_questions() -> None:
    rows = rows_of("task-scores.csv")
    score = {(row["method"], row["task"], row["part"]): float(row["score"]) for row in rows}
    subjects = sorted({row["part"] for row in rows if row["task"] == "mmlu"} - {""})
    assert len(subjects) == 57
    for cells in table("several-pools.md", "after 54 steps on"):
        method = {"no training": "base"}.get(cells[0], cells[0])
        assert cells[1] == f"{score[method, 'loss', '']:.4f}"
        assert cells[2:5] == [f"{score[method, task, '']:.3f}" for task in ("mmlu", "gsm8k", "tydiqa")]
        if method != "base":
            apart = [score[method, "mmlu", subject] - score["base", "mmlu", subject] for subject in subjects]
            assert cells[5] == f"{sum(a > 0 for a in apart)}, {sum(a < 0 for a in apart)}"


def test_measurements__the_preset_and_targets_are_those_of_the_trials() -> None:
    own = {"GSM8K": "gsm8k", "Code Alpaca": "code_alpaca"}
    rows = rows_of("preset-target-trials.csv")

    def told_of(values: np.ndarray) -> str:
        pair = paired(values)
        return f"{pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"

    def to_random(pool: str, one: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
        """To random selection, of the pool's datasets and the loss; and their names."""
        apart, datasets = pairs_of([row for row in rows if row["pool"] == pool], one, ("random", ""))
        kept = [place for place, name in enumerate(datasets) if name not in own.values()]
        return apart[:, [*kept, -1]], [datasets[place] for place in kept]

    told = [cells[1:] for cells in table("preset-target.md", "`random`, preset minus none")]
    for column, pool in enumerate(("clean", "dirty")):
        apart, datasets = to_random(pool, ("random", "preset clean"))
        median, without, worst = robust(apart, datasets)
        mean = apart[:, :-1].mean(axis=1)
        assert [row[column] for row in told] == [told_of(median), f"{told_of(without)} (`{worst}`)".strip("`"), told_of(mean)]
    for cells in table("preset-target.md", "minus `random`"):
        method, target = cells[:2]
        clean = [row for row in rows if row["pool"] == "clean"]
        apart, datasets = pairs_of(clean, (method, target), ("random", ""))
        columns = {name: apart[:, datasets.index(column)] for name, column in own.items()}
        (other,) = set(own) - {target}
        mean = to_random("clean", (method, target))[0][:, :-1].mean(axis=1)
        p = f"{paired(columns[target]).p:.4f}"
        assert cells[2] == str(len(apart))
        assert cells[4:] == [told_of(columns[target]), p, told_of(columns[other]), told_of(mean)]


def test_measurements__datamodelling_scores_are_those_of_the_halves() -> None:
    found = scores(pl.read_csv(PAGES / "datamodelling-halves.csv"))
    told = {cells[0]: cells[1:] for cells in table("datamodelling.md", "features")}
    assert list(told) == list(found)
    for name, (mean, error, together, spread) in found.items():
        whole = "" if np.isnan(together) else f"{together:.2f} ± {spread:.2f}"
        assert told[name] == [f"{mean:.3f} ± {error:.3f}", whole]
