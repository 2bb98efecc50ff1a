"""Settings of a run: plain, frozen, validated data, the same for the command line, a TOML file and a Prefect flow.

Every field states its unit, its default, and what it decides (tagcos_stream/declare.py); the command line, the forms and the
identities are derived from that. `SPACE_FIELDS` identify the feature space: two runs that agree on them share all gradients.
`MACHINE_FIELDS` change how fast a run is, never what it selects, so they are not part of a run's identity.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from tagcos_stream.credentials import refuse_credentials
from tagcos_stream.declare import check_declared, decided_by, panel_of, setting
from tagcos_stream.paths import expanded, is_id_list
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.selection.shares import parse_shares, parse_tokens, share_text
from tagcos_stream.types import UserError

DEFAULT_FRACTION = 0.05  # fraction of the pool to select
Variant = Literal["adam", "adam-corrected", "adam-delta", "hidden", "preconditioned", "sgd", "sign", "vectors"]
VECTORS = "vectors"  # the variant that no model computes: vectors of the user's own
# settings that may be addresses
ADDRESSES = ("sources", "root", "model", "target", "vectors", "decontaminate", "adapter", "checks", "exclude", "include")
BUDGETS = ("fraction", "count", "tokens")  # one of them says how much is selected
MAX_SEED, MAX_TRAINING_SEED = 2**63 - 1, 2**32 - 1
WITHOUT_MOMENTS = ("hidden", "sgd", "sign", VECTORS)  # variants that do not read Adam's moments of the warm-up
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]  # listed by command-line options, forms and messages

RECOMMENDED = "recommended"
# All settings of the paper (arXiv 2407.15235, section 4 and the released scripts).
PRESETS: dict[str, dict[str, Any]] = {
    RECOMMENDED: {},
    "published": {
        "max_length": 2048,
        "warmup_examples": 3840,
        "warmup_batch_size": 128,
        "learning_rate": 2e-5,
        "lora_rank": 128,
        "lora_alpha": 512,
        "lora_dropout": 0.1,
        "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "checkpoints": 3,
        # four epochs of 5% of 1.07 million in batches of 128, the rate rising over the first 3%: mean rates of 2.1569e-06,
        # 6.0784e-06 and 1e-05 before the checkpoints after 10, 20 and 30 steps, which weight them
        "schedule_steps": 1700,
        "rise_steps": 51,
        "gradient": "adam",
        "dim": 8192,
        "clusters": 100,
        "fraction": 0.05,
    },
    # leaves out rows whose prompt does not help the answer, and repeated answers that are longer than a label such as "yes" or
    # "not duplicate"; a row without a value passes
    "clean": {"where": "coalesce(ifd, 0) < 1 AND (coalesce(repeated, 1) < 3 OR target_tokens < 8)"},
}


RUN_NAME = re.compile(r"(?!latest$|(?:run|select)-\d)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_run_name(name: str) -> str:
    """Check that a name can be that of a series of runs.

    Parameters
    ----------
    name
        Given by the user.

    Returns
    -------
    str
        The name.

    Raises
    ------
    ValueError
        It has characters that are not allowed, is too long, or could be confused with a run id or `latest`.
    """
    if not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name runs: use at most 64 letters, digits, dots, hyphens and underscores, such as dev or "
            "nightly-2; not latest, nor what looks like a run id"
        )
    return name


def check_workers(run_on: str | None, workers: int, gpus_per_worker: float) -> None:
    """Check that the settings of workers agree.

    Parameters
    ----------
    run_on, workers, gpus_per_worker
        As in `Settings`.

    Raises
    ------
    ValueError
        They contradict each other.
    """
    if run_on == "threads" and workers > 1:
        raise ValueError(f"threads are one worker, not {workers}: set threads, or run_on to processes or ray")
    if gpus_per_worker and run_on != "ray":
        raise ValueError("gpus_per_worker is what a Ray worker asks for: set run_on to ray")


class Settings(BaseModel):
    """The settings of one run. Unknown names and invalid values are refused; the message names field, value and limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # pool
    sources: tuple[str, ...] = setting("pool", (), description="Files, folders, globs, URLs, or files that list sources.")
    root: str = setting(
        "machine", "tagcos-data", panel="Pool", description="Folder or object-store URL in which everything is stored."
    )
    max_rejects: float = setting(
        "machine",
        0.5,
        ge=0,
        panel="Pool",
        description="Stop if more rows than this are rejected: a fraction if below 1, otherwise a number of rows.",
    )
    max_retired: float = setting(
        "machine",
        0.1,
        ge=0,
        panel="Pool",
        description="Stop if a source lost more examples than this since the last run of the same name and sources: a "
        "fraction if below 1, otherwise a number of examples; 0: none may be lost.",
    )
    checks: str | None = setting(
        "machine", None, panel="Pool", description="Folder of SQL files that check a run: a query that returns rows fails."
    )
    near_duplicates: float | None = setting(
        "pool",
        None,
        gt=0,
        le=1,
        description="Drop an example whose Jaccard similarity (3-word shingles) to an earlier one is at least this. "
        "Default: off.",
    )
    heldout: float | None = setting(
        "pool",
        None,
        ge=0,
        le=0.5,
        description="Fraction of every dataset held out of the pool for evaluation. Default: as in the root's first run, or 0.",
    )
    decontaminate: tuple[str, ...] = setting(
        "pool", (), description="Evaluation files: reject rows that share 13 consecutive words with them."
    )

    # model
    model: str = setting("weights", "", description="Hugging Face id, model folder, or .gguf file of a causal language model.")
    revision: str | None = setting("weights", None, description="Revision of a hub model (branch, tag or commit).")
    trust_remote_code: bool = setting(
        "run", False, panel="Model", description="Allow Python code that is distributed with the model to run."
    )
    device: str = setting("machine", "auto", panel="Model", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "feature",
        "auto",
        panel="Model",
        description="Data type (dtype) of the base model's weights; auto: float32 on a CPU, bfloat16 on a GPU.",
    )
    quantize: Literal["8bit", "4bit"] | None = setting(
        "feature", None, panel="Model", description="Quantize the base weights to 8 or 4 bits (needs bitsandbytes)."
    )
    max_length: int = setting("feature", 1024, ge=8, panel="Model", description="Maximum length of an example in tokens.")
    too_long: Literal["truncate", "reject"] = setting(
        "feature",
        "truncate",
        panel="Model",
        description="How to handle examples longer than `max_length`: `truncate` or `reject`.",
    )
    special_tokens: Literal["keep", "escape", "reject"] = setting(
        "feature",
        "keep",
        panel="Model",
        description="What happens to control tokens, such as an end of turn, in an example's texts: escape encodes them as text.",
    )

    # warm-up
    adapter: str | None = setting(
        "weights",
        None,
        panel="Warm-up",
        description="Trainer or PEFT checkpoint folder, to use in place of a warm-up; with optimizer.pt for variants that read "
        "Adam's moments.",
    )
    warmup_examples: int | None = setting(
        "warmup",
        None,
        ge=1,
        description="Number of examples to warm up on. Default: 5% of the pool, at least 64 and at most 3840.",
    )
    warmup_batch_size: int = setting("warmup", 8, ge=1, description="Examples per warm-up step.")
    learning_rate: float = setting("warmup", 1e-4, gt=0, description="Peak learning rate of the warm-up.")
    rise_steps: int = setting("warmup", 0, ge=0, description="Steps over which the learning rate rises from zero to its peak.")
    schedule_steps: int | None = setting(
        "warmup",
        None,
        ge=1,
        description="Length in steps of the linear learning-rate schedule; may exceed the warm-up. Default: the warm-up's steps.",
    )
    lora_rank: int = setting("warmup", 8, ge=1, description="Rank of the adapter.")
    lora_alpha: float = setting("warmup", 32, gt=0, description="Scale of the adapter (alpha).")
    lora_dropout: float = setting(
        "warmup", 0.0, ge=0, lt=1, description="Dropout of the adapter during warm-up; always off when gradients are computed."
    )
    rslora: bool = setting("warmup", False, description="Scale the adapter by alpha over the square root of its rank.")
    lora_targets: tuple[str, ...] = setting(
        "warmup", (), description="Linear layers to adapt. Default: the attention projections."
    )
    lora_ranks: tuple[str, ...] = setting("warmup", (), description="Ranks of individual layers, as NAME=RANK.")
    checkpoints: int = setting(
        "warmup", 1, ge=1, description="Number of checkpoints, evenly spaced over the warm-up, to average features over."
    )

    # features
    gradient: Variant = setting(
        "feature",
        "sgd",
        description="Gradient variant (docs/gradients.md); adam is the published one, hidden reads hidden states, vectors "
        "reads vectors of your own.",
    )
    vectors: tuple[str, ...] = setting(
        "run",  # a space is named by the vectors, wherever they are
        (),
        panel="Gradient features",
        description="Parquet files or Zarr groups with a vector for every example, for the gradient variant vectors "
        "(docs/vectors.md); or folders and globs of such files.",
    )
    also_gradients: tuple[Variant, ...] = setting(
        "run",
        (),
        panel="Gradient features",
        description="Additional variants to compute in the same pass, each in a separate feature space.",
    )
    projection: Literal["sparse", "rademacher"] = setting(
        "feature", "sparse", description="Random projection from parameters to features."
    )
    dim: int = setting("feature", 8192, ge=8, description="Feature dimension.")
    feature_seed: int = setting(
        "feature", 0, ge=0, le=MAX_SEED, description="Seed of the adapter, the warm-up sample and the projection."
    )
    ifd: bool = setting(
        "run",
        False,
        panel="Gradient features",
        description="Compute instruction-following difficulty (docs/signals.md) of every example, by one more forward pass of "
        "the answers; done by itself where a condition or the method reads it.",
    )
    block_rows: int = setting(
        "run",
        256,
        ge=1,
        panel="Gradient features",
        description="Rows per block, which is the unit of work, resumption and storage.",
    )
    batch_tokens: int | None = setting(
        "run",
        None,
        ge=8,
        panel="Gradient features",
        description="Tokens per forward and backward pass. Default: 1024 on a CPU; on a GPU as many as fit, at most 8192.",
    )
    max_recompute: float = setting(
        "machine",
        1.0,
        ge=0,
        panel="Gradient features",
        description="Stop before changed settings make gradients that take more hours than this be computed again, where nobody "
        "is asked; 0: compute none again.",
    )

    # clusters
    clusters: int | None = setting(
        "clusters", None, ge=1, description="Number of clusters. Default: grows with the number of examples (100 for a million)."
    )
    min_cluster_rows: int = setting(
        "clusters", 8, ge=1, description="Clusters with fewer rows are dissolved: each row joins the nearest remaining cluster."
    )
    max_cluster_rows: int = setting("clusters", 20_000, ge=2, description="Clusters with more rows are split.")
    refit: Literal["auto", "never", "always"] = setting(
        "run",
        "auto",
        panel="Clusters",
        description="Whether to re-cluster after the pool has grown: `auto` (only if the existing clusters no longer fit), "
        "`never` (report drift, keep them) or `always`.",
    )

    # selection
    method: MethodName = setting(
        "choice", "tagcos", description="Selection method: tagcos, or a control to compare it with (docs/controls.md)."
    )
    fraction: float | None = setting(
        "budget", None, gt=0, le=1, description=f"Fraction of the pool to select. Default: {DEFAULT_FRACTION}."
    )
    count: int | None = setting("budget", None, ge=1, description="Number of examples to select, in place of a fraction.")
    where: str | None = setting(
        "run",
        None,
        panel="Selection",
        description="Condition in SQL on the columns of `signals`, such as \"loss < 4 AND dataset <> 'forum'\": only examples "
        "that satisfy it may be chosen. Default: all.",
    )
    target_where: str | None = setting(
        "run",
        None,
        panel="Selection",
        description="Condition on `signals` for the examples whose mean feature is matched. Default: as `where`.",
    )
    tokens: str | None = setting(
        "budget",
        None,
        description="Target tokens to select, in place of a fraction or a count: a number such as 500000, 500k or 5M. The "
        "selection has at most as many, and less than one example fewer.",
    )
    tokens_all: bool = setting(
        "budget", False, description="Count all tokens of an example, not only target tokens, in `tokens`."
    )
    gain_per: Literal["row", "token"] = setting(
        "choice",
        "row",
        description="With `tokens`: whether the pursuit chooses by gain per row, or by gain per token, which takes more and "
        "shorter examples.",
    )
    share: tuple[str, ...] = setting(
        "run",  # a choice is named by the rows and the budget that follow from it
        (),
        panel="Selection",
        description="Bounds of a dataset as DATASET=MINIMUM:MAXIMUM or DATASET=MINIMUM:MAXIMUM:WEIGHT: shares of the budget "
        "(0.25 or 25%), or whole numbers of examples or tokens (docs/budgets.md).",
    )
    balance: Literal["natural", "equal"] = setting(
        "run",
        "natural",
        panel="Selection",
        description="Whether datasets share the budget as the method chooses from the pool (natural), or equally (in proportion "
        "to their weights, if they have any), each dataset chosen from separately.",
    )
    exclude: str | None = setting(
        "run",
        None,
        panel="Selection",
        description="Examples that may not be chosen: a .txt file with an id a line, a .csv, .jsonl or .parquet file with the "
        "column example_id, or a condition on `signals`.",
    )
    include: str | None = setting(
        "run",
        None,
        panel="Selection",
        description="Examples that must be chosen, and count in the budget: a file of ids as for `exclude`, or a condition on "
        "`signals`.",
    )
    ridge: float = setting("choice", 1.0, gt=0, description="Ridge penalty (lambda) of the matching pursuit.")
    tol: float = setting("choice", 1e-4, ge=0, description="Relative residual at which a round of the pursuit stops.")
    target: tuple[str, ...] = setting(
        "run",
        (),
        panel="Selection",
        description="Files of examples that the selection stands for in place of the pool's mean, or the name of a target set of "
        "the root; none: the pool's mean.",
    )
    sticky: float | None = setting(
        "choice",
        None,
        ge=0,
        description="Keep earlier choices while the residual of a cluster exceeds the best by at most this fraction. "
        "Default: off.",
    )
    match_lengths: str | None = setting(
        "choice",
        None,
        description="Run whose distribution of target tokens length-matched follows. Default: the run that is selected from "
        "again.",
    )
    seed: int = setting(
        ("clusters", "choice"),
        0,
        ge=0,
        le=MAX_SEED,
        panel="Selection",
        description="Seed of the clustering and of the controls.",
    )

    # machine
    memory_limit: float | None = setting(
        "machine",
        None,
        gt=0,
        allow_inf_nan=False,
        description="Peak memory of a stage in GiB; what runs the model on a GPU is limited by the device's free memory in its "
        "place. Default: 4 for clustering and selection, all free memory for the model.",
    )
    run_on: Literal["threads", "processes", "ray"] | None = setting(
        "machine",
        None,
        description="Where blocks and clusters are computed: threads of this process, processes, or a Ray cluster; "
        "default: processes if there are several workers.",
    )
    workers: int = setting(
        "machine",
        1,
        ge=1,
        description="Number of processes or Ray workers; each loads its own model. If there are several GPUs, processes use one "
        "each; Ray workers use GPUs only with `gpus_per_worker`.",
    )
    gpus_per_worker: float = setting(
        "machine", 0.0, ge=0, description="GPUs that each Ray worker requests; workers with a fraction share one."
    )
    threads: int | None = setting(
        "machine", None, ge=1, description="CPU threads per worker. Default: all cores, divided among the workers (on Ray: one)."
    )
    name: str | None = setting(
        "machine",
        None,
        panel="Selection",
        description="Series of runs that this one belongs to, compared with, and `latest` of. Default: main for a run that reads "
        "sources, none for a selection from stored features.",
    )
    wait: float = setting(
        "machine", 60.0, ge=0, description="Seconds to wait for a catalog or root that another process has locked."
    )

    @field_validator(
        "sources", "target", "vectors", "decontaminate", "lora_targets", "lora_ranks", "also_gradients", mode="before"
    )
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("sources", "root", "target", "vectors", "decontaminate", "adapter", "checks")
    @classmethod
    def _no_empty_path(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        if any(not path.strip() for path in ([value] if isinstance(value, str) else value or ())):
            raise ValueError("an empty text is no path, and would mean the folder that you are in: is a shell variable not set?")
        return value

    @field_validator(*ADDRESSES)
    @classmethod
    def _no_key_in_an_address(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        """Before a run records them."""
        for address in [value] if isinstance(value, str) else value or ():
            refuse_credentials(address)
        return value

    @field_validator("adapter", "exclude", "include")
    @classmethod
    def _in_home(cls, value: str | None) -> str | None:
        return str(expanded(value)) if value is not None and value.startswith("~/") else value

    @field_validator("exclude", "include")
    @classmethod
    def _the_same_list_from_any_folder(cls, value: str | None) -> str | None:
        """A run records its settings, and is selected from again by commands that are called elsewhere."""
        local = value is not None and is_id_list(value) and "://" not in value
        return str(Path(value).absolute()) if value is not None and local else value

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        return value if value is None else check_run_name(value)

    @field_validator("target")
    @classmethod
    def _none_is_no_target(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if value == ("none",) else value

    @field_validator("lora_ranks")
    @classmethod
    def _names_and_ranks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            name, _, rank = item.rpartition("=")
            if not name or not rank.isdecimal() or int(rank) < 1:
                raise ValueError(f"{item!r} is not NAME=RANK with a rank of at least 1, such as down_proj=16")
        return value

    @field_validator("share", mode="before")
    @classmethod
    def _tables_of_datasets(cls, value: Any) -> Any:
        if isinstance(value, dict):  # tables of a settings file
            for dataset, table in value.items():
                if not isinstance(table, dict):
                    raise ValueError(f"dataset {dataset} is {table!r}, must be a table such as {{minimum = 0.1, maximum = 0.3}}")
            return tuple(share_text(dataset, table) for dataset, table in value.items())
        return (value,) if isinstance(value, str) else value

    @field_validator("share")
    @classmethod
    def _bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_shares(value)
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _number_of_tokens(cls, value: Any) -> Any:
        return None if value is None else str(parse_tokens(str(value)))

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.target and self.target_where is not None:
            raise ValueError("target_where says whose mean is matched, and a target replaces that mean: give one of them")
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise ValueError("give one of fraction, count and tokens")
        if self.tokens is not None and self.sticky is not None:
            raise ValueError("sticky keeps a number of examples, and tokens sets no number: give fraction or count, or no sticky")
        if self.min_cluster_rows * 2 > self.max_cluster_rows:
            raise ValueError(
                f"max_cluster_rows {self.max_cluster_rows} must be at least twice min_cluster_rows {self.min_cluster_rows}"
            )
        if self.warms_up and self.feature_seed > MAX_TRAINING_SEED:
            raise ValueError(f"feature_seed {self.feature_seed} seeds a training, so it must be at most {MAX_TRAINING_SEED}")
        check_workers(self.run_on, self.workers, self.gpus_per_worker)
        return self

    def budget(self, n_examples: int, mean_tokens: float | None = None) -> int:
        """Return the exact number of examples to select; of a budget in tokens, about how many examples it pays for.

        Parameters
        ----------
        n_examples
            Size of the pool.
        mean_tokens
            Of an example, as `tokens` counts them; only needed for a budget in tokens.

        Returns
        -------
        int
            Between 1 and `n_examples`.

        Raises
        ------
        UserError
            `count` is larger than the pool.
        """
        if self.tokens is not None:
            return max(1, min(round(int(self.tokens) / (mean_tokens or 1.0)), n_examples))
        if self.count is not None:
            if self.count > n_examples:
                raise UserError(
                    f"count {self.count:,} is more than the {n_examples:,} examples of the pool: lower it, or give more sources"
                )
            return self.count
        # Python rounds half to even; any rule will do as long as it is applied everywhere
        return min(max(1, round((self.fraction or DEFAULT_FRACTION) * n_examples)), n_examples)

    def warmup_size(self, n_examples: int) -> int:
        """Return the number of examples to warm up on.

        Parameters
        ----------
        n_examples
            Number of examples in the pool that could be drawn.

        Returns
        -------
        int
            At most `n_examples`.
        """
        wanted = self.warmup_examples or min(max(64, round(0.05 * n_examples)), 3840)
        return min(wanted, n_examples)

    @property
    def variants(self) -> tuple[str, ...]:
        """The gradient variants that a run needs: the one that is selected by, then those that are computed with it."""
        return tuple(dict.fromkeys((self.gradient, *self.also_gradients)))

    @property
    def model_variants(self) -> tuple[str, ...]:
        """Those of the variants that a model computes; without any, a run needs no model."""
        return tuple(variant for variant in self.variants if variant != VECTORS)

    @property
    def moment_variants(self) -> tuple[str, ...]:
        """Those of the variants that read Adam's moments of the warm-up."""
        return tuple(variant for variant in self.model_variants if variant not in WITHOUT_MOMENTS)

    @property
    def reads_base_model(self) -> bool:
        """Whether the model's features are hidden states of the model without adapter, so that there is no warm-up."""
        return self.model_variants == ("hidden",) and self.adapter is None

    @property
    def warms_up(self) -> bool:
        """Whether an adapter is trained on the pool."""
        return bool(self.model_variants) and self.adapter is None and not self.reads_base_model

    def rank_pattern(self) -> dict[str, int]:
        """Return the ranks of individual layers.

        Returns
        -------
        dict
            Rank by layer name, or by the end of a name.
        """
        return {name: int(rank) for name, _, rank in (item.rpartition("=") for item in self.lora_ranks)}


check_declared(Settings)
MACHINE_FIELDS = frozenset(decided_by(Settings, "machine"))
WARMUP_FIELDS = decided_by(Settings, "warmup")
SPACE_FIELDS = decided_by(Settings, "warmup", "feature")
# what `tagcos select` may change: everything after the gradients, which of the computed gradient variants is used, and the checks
SELECT_FIELDS = tuple(
    name
    for name in Settings.model_fields
    if name in ("gradient", "checks") or panel_of(Settings, name) in ("Clusters", "Selection", "Machine")
)


def wrong_values(error: ValidationError) -> str:
    """Describe every invalid setting for an error message.

    Parameters
    ----------
    error
        Raised by a settings model.

    Returns
    -------
    str
        Name, fault and given value of each, separated by semicolons.
    """
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        given = "" if item["type"] in ("missing", "value_error") else f" (given: {item['input']!r})"
        lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)


def load_settings(values: dict[str, Any], *, toml: Path | None = None, preset: str | None = None) -> Settings:
    """Make settings from explicit values, a TOML file and a preset, in this order of precedence.

    A fraction, count or number of tokens replaces whichever of them what has less precedence gives.

    Parameters
    ----------
    values
        Settings by name; these win over the file and the preset.
    toml
        TOML file with settings by name, and optionally `preset`.
    preset
        Name in `PRESETS`; by default the `preset` of the file, or recommended.

    Returns
    -------
    Settings
        Validated and immutable.

    Raises
    ------
    UserError
        The preset is unknown, the file cannot be read, or a name or value is invalid; the message names the remedy.
    """
    from_file: dict[str, Any] = {}
    if toml is not None:
        try:
            from_file = tomllib.loads(toml.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"settings file {toml}: {error.strerror}; check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"settings file {toml} is not valid TOML: {error}") from error
    of_file = from_file.pop("preset", RECOMMENDED)
    chosen = of_file if preset is None else preset
    if chosen not in list(PRESETS):  # a file may hold what is no key
        raise UserError(f"preset {chosen!r} is unknown; choose from {', '.join(PRESETS)}")
    merged: dict[str, Any] = {}
    for given in (PRESETS[chosen], from_file, values):
        if any(given.get(name) is not None for name in BUDGETS):
            merged = {name: value for name, value in merged.items() if name not in BUDGETS}
        merged |= given
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise UserError(wrong_values(error) + f"; see `tagcos run --help`{f' and {toml}' if toml else ''}") from error
