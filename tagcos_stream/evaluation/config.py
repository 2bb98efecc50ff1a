"""Settings of an evaluation: what is compared, how it is trained, and what it is measured on. Plain, frozen, checked data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tagcos_stream.config import Settings, Variant, wrong_values
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError

FULL, BASE = "full", "base"  # the whole pool; the model as it is
RANDOM = "random"  # what all others are held against
Regime = Literal["steps", "epochs"]
Schedule = Literal["cosine", "linear", "constant"]
TaskName = Literal["mmlu", "bbh", "gsm8k", "tydiqa"]
OWN = "own"  # a selection by the run's own settings
# those that may be varied: of the clusters, of the pursuit
OF_CLUSTERS, OF_PURSUIT = ("clusters", "min_cluster_rows", "max_cluster_rows"), ("ridge", "tol")


def _of_run(name: str) -> str:
    return (Settings.model_fields[name].description or "").split("; default")[0].removesuffix(".") + "; default the run's."


class Evaluation(BaseModel):
    """One comparison. Unknown names and wrong values are refused with the field, the value and the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # what is compared
    root: str = Field("tagcos-data", description="Folder that holds everything durable.")
    run: str = Field("latest", description="Complete run whose pool and features are selected from; latest is the newest.")
    method: tuple[str, ...] = Field(
        (RANDOM, "tagcos", FULL), description="Methods to compare: those of docs/controls.md, and full for the whole pool."
    )
    fraction: tuple[float, ...] = Field((0.05,), description="Shares of the pool to select.")
    seeds: int = Field(3, ge=1, description="Seeds of selection and training, the same for all methods: 0, 1 and on.")
    gradient: tuple[Variant, ...] = Field(
        (), description="Gradient variants to select by, where the run computed them; default the run's own."
    )
    vary: tuple[str, ...] = Field(
        (),
        description=f"Settings to select by, each as NAME=VALUE ({', '.join(OF_CLUSTERS + OF_PURSUIT)}) or {OWN!r}, for the "
        "methods that read them; default the run's own.",
    )
    weights: bool = Field(False, description="Also train with the selection's weights, where the method gives them.")
    regime: tuple[Regime, ...] = Field(
        ("steps", "epochs"),
        description="Train all for as many steps, or for as many passes over their own examples; both by default.",
    )

    # how it is trained
    model: str = Field("", description="Model to train, another than the run's to see whether a selection transfers.")
    revision: str | None = Field(None, description="Revision of a hub model (branch, tag or commit).")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model, if you trust its author.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(None, description=_of_run("dtype"))
    quantize: Literal["8bit", "4bit"] | None = Field(None, description=_of_run("quantize"))
    max_length: int | None = Field(None, ge=8, description="Tokens an example is cut to; default the run's.")
    epochs: float = Field(4.0, gt=0, description="Passes over a selection (regime epochs).")
    steps: int | None = Field(
        None, ge=1, description="Steps of every training (regime steps); default those of the largest selection's passes."
    )
    batch_size: int = Field(8, ge=1, description="Examples per step.")
    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate of AdamW.")
    schedule: Schedule = Field("cosine", description="How the rate falls after its rise: cosine or linear to zero, or constant.")
    rise: float = Field(0.03, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapter.")
    lora_alpha: float = Field(32, gt=0, description="Scale of the adapter (alpha).")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the adapter while it trains.")
    lora_targets: tuple[str, ...] = Field((), description="Linear layers to adapt; default the attention projections.")

    # what it is measured on
    heldout_rows: int = Field(
        64, ge=0, description="Held-out examples of each dataset that the loss is measured on, at most; 0 for all."
    )
    heldout_files: tuple[str, ...] = Field(
        (), description="Files of your own to measure the loss on, instead of the rows that the root holds out."
    )
    tasks: str | None = Field(None, description="Folder with task data (docs/evaluation.md); default no tasks.")
    task: tuple[TaskName, ...] = Field((), description="Tasks to measure; default all whose data is in the folder.")
    task_items: int | None = Field(None, ge=1, description="Questions of each part of a task, at most; default all.")

    # machine
    device: str | None = Field(None, description=_of_run("device"))
    batch_tokens: int | None = Field(None, ge=8, description="Tokens per pass; default 1024 on a CPU, on a GPU what fits.")
    memory_limit: float | None = Field(None, gt=0, description="GiB that training may take; default what is free.")
    threads: int | None = Field(None, ge=1, description="Processor threads; default all of the machine.")
    wait: float = Field(60.0, ge=0, description="Seconds to wait for a catalog or root that another process holds.")

    @field_validator("method", "fraction", "gradient", "vary", "regime", "lora_targets", "heldout_files", "task", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        values = (value,) if isinstance(value, str | int | float) else value
        return tuple(dict.fromkeys(values))  # named twice is meant once

    @field_validator("method")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS and name != FULL:
                raise ValueError(f"{name!r} is unknown; choose from {', '.join(METHODS)}, {FULL}")
        if not set(value) - {FULL}:
            raise ValueError(f"name a method beside {FULL}: a comparison needs something to compare")
        return value

    @field_validator("fraction")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for share in value:
            if not 0 < share <= 1:
                raise ValueError(f"{share} must lie above 0 and be at most 1")
        return value

    @field_validator("vary")
    @classmethod
    def _settings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        given = [changed(item) for item in value]
        return tuple(dict.fromkeys("".join(f"{name}={new}" for name, new in changes.items()) or OWN for changes in given))

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        if self.task and not self.tasks:
            raise ValueError("task names what to measure, tasks the folder with its data: give both")
        for name in ("method", "fraction", "regime"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        return self


# what tells one evaluation from another, beside pool, model and rows measured on; the others say how much of it is done
FIXED_FIELDS = (
    "max_length", "epochs", "batch_size", "learning_rate", "schedule", "rise", "lora_rank", "lora_alpha", "lora_dropout",
    "lora_targets",
)  # fmt: skip


def changed(setting: str) -> dict[str, Any]:
    """NAME=VALUE as a change of a run's settings, none for OWN. ValueError with what is wrong."""
    if setting == OWN:
        return {}
    name, equals, text = setting.partition("=")
    if not equals or name not in OF_CLUSTERS + OF_PURSUIT:
        raise ValueError(f"{setting!r} is neither {OWN!r} nor NAME=VALUE with a name among {', '.join(OF_CLUSTERS + OF_PURSUIT)}")
    try:
        return {name: getattr(Settings.model_validate({name: text}), name)}
    except ValidationError as error:
        raise ValueError(wrong_values(error)) from None


def varied(method: str, vary: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `vary` that the method reads; OWN alone where it reads none."""
    read = (OWN, *OF_CLUSTERS * (METHODS[method].within == "clusters"), *OF_PURSUIT * (method in ("tagcos", "omp")))
    return tuple(setting for setting in vary if setting.partition("=")[0] in read) or (OWN,)


def load_evaluation(values: dict[str, Any]) -> Evaluation:
    """Checked settings. UserError naming each wrong value."""
    try:
        return Evaluation(**values)
    except ValidationError as error:
        raise UserError(wrong_values(error) + "; see `tagcos evaluate --help`") from error
