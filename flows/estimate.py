"""`tagcos estimate`: rows, tokens, disk and hours of a run, from a look at its sources and half a minute of its own model.

What is measured here: rows (counted, within a minute; what is left by the share of bytes), tokens and rejects (a sample through
the tokenizer), the speed of the warm-up and of the gradient passes (real ones, on that sample), the size of an example on
disk, and the speed of matrix products. What follows is arithmetic.
"""

from __future__ import annotations

import io
import math
import shutil
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.models import AdaptedModel, encode_row, max_length, none_encoded
from flows.plan import Plan, Step, make_plan
from flows.probe import Probe
from flows.progress import Reporter, SilentReporter
from flows.source_sample import SourceSample, sample_sources, survey_of_sample
from flows.stages.eligible import reads_ifd
from flows.survey import Survey
from flows.workers.work import set_threads
from storage.arrays.segments import ids_spec
from storage.database import Catalog
from storage.examples import PARQUET_GROUP_ROWS
from storage.files.open import local_folder
from storage.root import open_root
from tagcos_stream.config import Settings
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.machine import available_cpus, matrix_rate
from tagcos_stream.types import UserError

# an example's rows in the catalog, its copy and two snapshots, and what these take when empty (16,000 and 4,000 rows of one run)
CATALOG_BYTES, CATALOG_EMPTY = 300, 24_000_000
REGROUPED = 1.07  # features by cluster, for each byte of features (docs/measurements/storage.md)
KMEANS_PASSES = 7  # a mini-batch epoch, five exact ones, one to assign (docs/scaling.md)
PRODUCTS_A_CHOICE = 4  # products of a row with all that a pursuit takes the time of, for each row chosen (docs/measurements/)


@dataclass(frozen=True)
class Estimate:
    """Counts, bytes and seconds; `tokens_error` is the standard error of tokens."""

    files: int
    source_bytes: int
    rows: int
    rows_counted: bool  # without those of files that take more than a minute to count
    rows_read: int  # of them, those that were interpreted
    examples: int
    heldout: int  # of them, kept out of the pool
    known_examples: int
    rejected_rows: int
    without_gradient: int
    truncated: int
    selected: int
    clusters: int
    tokens_an_example: float
    tokens: int
    tokens_error: int
    device: str
    cpus: int  # that this process may use at the same time
    matrix_rate: float  # operations per second of float32 products on them
    token_budget: int
    tokens_a_second: float
    probe_seconds: float
    disk_bytes: int
    free_bytes: int | None
    disk: dict[str, int]
    seconds: float
    stages: dict[str, float]


def estimate(settings: Settings, seconds: float = 30.0, reporter: Reporter | None = None) -> Estimate:
    """Estimate `tagcos run` with these settings. Reads sources and model, writes nothing.

    Parameters
    ----------
    settings
        Those of the run.
    seconds
        How long to measure passes of the model.
    reporter
        Gets progress; by default nothing is shown.

    Returns
    -------
    Estimate
        What the run would read, compute and store.

    Raises
    ------
    UserError
        A source or model cannot be read, no example is usable, the model's passes do not fit in memory, or there is no model.
    """
    if not settings.model_variants:
        raise UserError(
            "gradient vectors runs no model, whose passes are what an estimate measures: `tagcos run --dry-run` says what a run "
            "would compute"
        )
    reporter = reporter or SilentReporter()
    set_threads(settings.threads)
    with reporter.stage("read sources", "bytes") as progress:
        pool = sample_sources(resolve_sources(settings.sources), progress)
    if not len(pool.sample):
        raise UserError(f"no usable example in {', '.join(settings.sources)}: `tagcos run` says why of each row")
    catalog = _catalog(settings)
    found = survey_of_sample(pool, settings, catalog)
    plan = _plan(settings, catalog, pool, found)
    passes = _measure_passes(settings, pool.sample, seconds, reporter)
    work = _work(settings, pool, found, plan, passes)
    return _estimate(settings, pool, plan, passes, work)


@dataclass(frozen=True)
class _Passes:
    """A model's passes over the sample, as measured."""

    device: str
    loading: float  # seconds
    encoded: list[Encoded]
    share: float  # of the sample, examples that can be computed
    tokens: float  # of an example, on average
    tokens_error: float
    target_tokens: float
    adapter: int  # parameters
    token_budget: int
    warm_up: float  # seconds a token
    tokens_a_second: float
    probe_seconds: float
    answers_a_second: float | None  # tokens of answers without prompts; None where no signal asks for them


def _measure_passes(settings: Settings, sample: pl.DataFrame, seconds: float, reporter: Reporter) -> _Passes:
    reporter.say(f"loading model {settings.model}")
    with AdaptedModel() as model:
        started = time.perf_counter()
        loaded = model.load(settings, settings.device)
        loading = time.perf_counter() - started
        encoded, rejected, lengths = _encode(settings, loaded, sample)
        with reporter.stage("probe", "tokens") as progress:
            probe = Probe(settings, loaded, encoded)
            warm_up = probe.warm_up()
            rate, spent = probe.gradients(seconds, progress)
            alone = probe.answers(seconds / 10) if reads_ifd(settings) else None
        adapter = sum(p.numel() for name, p in loaded.model.named_parameters() if ".lora_" in name)
    return _Passes(
        device=loaded.device,
        loading=loading,
        encoded=encoded,
        share=1 - rejected / len(sample),
        tokens=float(lengths.mean()),
        tokens_error=float(lengths.std() / math.sqrt(len(lengths))),
        target_tokens=sum(e.n_target for e in encoded) / len(encoded),
        adapter=adapter,
        token_budget=probe.token_budget,
        warm_up=warm_up,
        tokens_a_second=rate,
        probe_seconds=spent,
        answers_a_second=alone,
    )


def _plan(settings: Settings, catalog: Catalog | None, pool: SourceSample, found: Survey) -> Plan:
    # a count is of the whole pool, and there may be more in it than was read
    partly = settings.count is not None and pool.rows_read < pool.rows
    return make_plan(settings.model_copy(update={"count": 1}) if partly else settings, catalog, found)


@dataclass(frozen=True)
class _Work:
    """What a run has to do, in examples."""

    stored: float  # that the root lacks
    kept: int  # in the pool
    usable: int  # of them, those that can be computed
    missing: int  # to be encoded
    fresh: float  # of them, those that can be computed
    chosen: int
    clusters: int
    checkpoints: int
    warms_up: bool


def _work(settings: Settings, pool: SourceSample, found: Survey, plan: Plan, passes: _Passes) -> _Work:
    from tagcos_stream.clustering.kmeans import default_clusters

    scale = pool.examples / len(pool.keys)  # of what was not read
    kept = pool.examples - round(found.heldout * scale)
    usable = round(kept * passes.share)
    missing = min(round(plan.step("gradients").compute * scale), kept + len(found.target.new))
    return _Work(
        stored=pool.examples - found.met * scale,
        kept=kept,
        usable=usable,
        missing=missing,
        fresh=missing * passes.share,
        chosen=settings.budget(max(usable, 1), passes.tokens if settings.tokens_all else passes.target_tokens),
        clusters=min(settings.clusters or default_clusters(usable), usable),
        checkpoints=1 if settings.adapter else settings.checkpoints,
        warms_up=plan.step("warm-up").compute > 0,
    )


def _estimate(settings: Settings, pool: SourceSample, plan: Plan, passes: _Passes, work: _Work) -> Estimate:
    products = matrix_rate()
    stages = _seconds(settings, pool, plan, passes, work, products)
    disk = _disk(settings, pool, plan, passes, work)
    return Estimate(
        files=pool.files,
        source_bytes=pool.bytes,
        rows=pool.rows,
        rows_counted=pool.rows_counted,
        rows_read=pool.rows_read,
        examples=pool.examples,
        heldout=pool.examples - work.kept,
        known_examples=work.kept - work.missing,
        rejected_rows=pool.rejected,
        without_gradient=work.kept - work.usable,
        truncated=round(work.kept * sum(e.truncated for e in passes.encoded) / len(pool.sample)),
        selected=work.chosen,
        clusters=work.clusters,
        tokens_an_example=passes.tokens,
        tokens=round(work.fresh * passes.tokens),
        tokens_error=round(work.fresh * passes.tokens_error),
        device=passes.device,
        cpus=available_cpus(),
        matrix_rate=products,
        token_budget=passes.token_budget,
        tokens_a_second=passes.tokens_a_second,
        probe_seconds=passes.probe_seconds,
        disk_bytes=sum(disk.values()),
        free_bytes=free_disk(settings.root),
        disk=disk,
        seconds=sum(stages.values()),
        stages=stages,
    )


def _seconds(
    settings: Settings, pool: SourceSample, plan: Plan, passes: _Passes, work: _Work, products: float
) -> dict[str, float]:
    """By stage; products: operations per second of matrix products."""
    devices = _devices(settings, passes.device)
    loads = 0 if not work.warms_up and not work.missing else 2 if work.warms_up and settings.workers > 1 else 1
    warm_up = passes.warm_up * settings.warmup_size(work.kept) * passes.tokens
    alone, answers = passes.answers_a_second, work.fresh * passes.target_tokens * work.checkpoints
    choices = work.chosen * _share(plan.step("select"))
    return {
        "ingest": pool.read_seconds * pool.rows / max(pool.rows_read, 1),
        "load model": passes.loading * loads,
        "warm-up": warm_up if work.warms_up and not settings.adapter else 0.0,
        "gradients": work.fresh * passes.tokens * work.checkpoints / passes.tokens_a_second / devices,
        "answers without prompts": 0.0 if alone is None else answers / alone / devices,
        "cluster": 2 * work.usable * work.clusters * settings.dim * _kmeans_passes(plan.step("cluster")) / products,
        "select": 2 * work.usable * settings.dim * (choices / work.clusters) * PRODUCTS_A_CHOICE / products,
    }


def _disk(settings: Settings, pool: SourceSample, plan: Plan, passes: _Passes, work: _Work) -> dict[str, int]:
    """Bytes that the run adds, by what they hold."""
    rows, kinds = round(work.fresh), len(settings.variants)
    ids = ids_spec(rows)
    regrouped = work.usable * settings.dim * 2 * REGROUPED * _share(plan.step("cluster"))
    return {
        "examples": round(work.stored * _stored_bytes(pool.sample)),
        "features": (rows * settings.dim * 2 + ids.n_chunks * ids.chunk_bytes) * kinds,
        "features by cluster": round(regrouped),
        "checkpoints": 12 * passes.adapter * work.checkpoints * kinds if work.warms_up else 0,
        "catalog": CATALOG_EMPTY + CATALOG_BYTES * pool.examples,
    }


def _encode(settings: Settings, loaded: Any, sample: pl.DataFrame) -> tuple[list[Encoded], int, np.ndarray]:
    """(examples that can be computed, number of those that cannot, tokens of those that can)."""
    longest, reject = max_length(settings, loaded), settings.too_long == "reject"
    special = settings.special_tokens
    tried = [encode_row(loaded.tokenizer, row, longest, reject, special) for row in sample.iter_rows(named=True)]
    good = [e for e in tried if isinstance(e, Encoded)]
    if not good:
        raise none_encoded(list(zip(sample["example_id"], tried, strict=True)), settings)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(len(good))
    return [good[i] for i in order], len(tried) - len(good), np.array([len(e) for e in good], np.float64)


def _catalog(settings: Settings) -> Catalog | None:
    """Of the root; None where there is none yet, or one that `tagcos run` will have to say something about."""
    try:
        return open_root(settings.root, create=False, wait_seconds=settings.wait).catalog
    except UserError:
        return None


def _share(step: Step) -> float:
    """Of a stage's work, how much is to be done."""
    return step.compute / max(step.total, 1)


def _kmeans_passes(step: Step) -> float:
    """Passes over all rows that the clustering takes: rows that join known clusters are read once."""
    return _share(step) * (KMEANS_PASSES if step.reuse is None else 1)


def _stored_bytes(sample: pl.DataFrame) -> float:
    """Bytes an example takes as the store writes it."""
    buffer = io.BytesIO()
    sample.select("example_id", "messages", "tools", "template_kwargs").write_parquet(
        buffer, compression="zstd", row_group_size=PARQUET_GROUP_ROWS
    )
    return buffer.tell() / len(sample)


def free_disk(root: str) -> int | None:
    """Measure the space that is left for a root.

    Parameters
    ----------
    root
        Its folder, which need not exist, or address.

    Returns
    -------
    int or None
        Free bytes of a local disk; None in an object store.
    """
    place = local_folder(root)
    if place is None:
        return None
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _devices(settings: Settings, device: str) -> int:
    """What shares the gradient stage: on one machine's processor several workers share the same cores."""
    return settings.workers if device.startswith("cuda") or settings.run_on == "ray" else 1
