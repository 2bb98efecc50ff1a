"""Settings of an evaluation: what is compared, how it is trained, and what it is measured on. Plain, frozen, checked data."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from tagcos_stream.config import DEFAULT_FRACTION, Settings, Variant, check_workers, wrong_values
from tagcos_stream.declare import check_declared, decided_by, setting
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError

FULL, BASE = "full", "base"  # the whole pool; the model as it is
RANDOM = "random"  # what all others are held against
Regime = Literal["steps", "epochs"]
Schedule = Literal["cosine", "linear", "constant"]
TaskName = Literal["mmlu", "bbh", "gsm8k", "tydiqa"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
OWN = "own"  # a selection by the run's own settings
# settings that may be varied: those of clusters and choice, but for what an evaluation varies anyway, and `sticky`, which
# keeps the choices of an earlier run that no comparison has
APART = ("method", "seed", "sticky")
OF_CLUSTERS = tuple(name for name in decided_by(Settings, "clusters") if name not in APART)
OF_CHOICE = tuple(name for name in decided_by(Settings, "choice") if name not in APART)
OF_ANY = ("where", "balance")  # read by every method
OF_FEATURES = ("target", "target_where")  # read by the methods that read features
VARIED = (*OF_CLUSTERS, *OF_CHOICE, *OF_ANY, *OF_FEATURES)


def _of(name: str) -> str:
    return Settings.model_fields[name].description or ""


def _of_run(name: str) -> str:
    return _of(name).split("; default")[0].removesuffix(".") + "; default the run's."


class Evaluation(BaseModel):
    """One comparison. Unknown names and wrong values are refused with the field, the value and the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # what is compared
    root: str = setting("machine", "tagcos-data", panel="What is compared", description="Folder that holds everything durable.")
    run: str = setting(
        "subject",
        "latest",
        panel="What is compared",
        description="Complete run whose pool and features are selected from: id, name, or latest, which is main.",
    )
    method: tuple[str, ...] = setting(
        "trials",
        (RANDOM, "tagcos", FULL),
        description="Methods to compare: those of docs/controls.md, and full for the whole pool.",
    )
    fraction: tuple[float, ...] = setting("trials", (DEFAULT_FRACTION,), description="Shares of the pool to select.")
    seeds: int = setting("trials", 3, ge=1, description="Seeds of selection and training, the same for all methods: 0, 1 and on.")
    gradient: tuple[Variant, ...] = setting(
        "trials", (), description="Gradient variants to select by, where the run computed them; default the run's own."
    )
    vary: tuple[str, ...] = setting(
        "trials",
        (),
        description=f"Settings to select by, each as NAME=VALUE ({', '.join(VARIED)}), several joined by `;`, or {OWN!r}, for "
        "the methods that read them; default the run's own.",
    )
    weights: bool = setting("trials", False, description="Also train with the selection's weights, where the method gives them.")
    regime: tuple[Regime, ...] = setting(
        "trials",
        ("steps", "epochs"),
        description="Train all for as many steps, or for as many passes over their own examples; both by default.",
    )
    against: str = setting(
        "trials", RANDOM, description="Method of the evaluation that the others are tested against, seed by seed."
    )

    # how it is trained
    model: str = setting(
        "subject", "", description="Model to train, another than the run's to see whether a selection transfers."
    )
    revision: str | None = setting("subject", None, description="Revision of a hub model (branch, tag or commit).")
    trust_remote_code: bool = setting(
        "machine",
        False,
        panel="How it is trained",
        description="Run Python code that comes with the model, if you trust its author.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = setting("subject", None, description=_of_run("dtype"))
    quantize: Literal["8bit", "4bit"] | None = setting("subject", None, description=_of_run("quantize"))
    max_length: int | None = setting("training", None, ge=8, description="Tokens an example is cut to; default the run's.")
    equal: Literal["examples", "tokens"] = setting(
        "training",
        "examples",
        panel="What is compared",
        description="Give every method as many examples, or as many target tokens: a fraction is then one of the pool's target "
        "tokens, and in regime epochs all train on as many.",
    )
    epochs: float = setting("training", 4.0, gt=0, description="Passes over a selection (regime epochs).")
    steps: int | None = setting(
        "subject",
        None,
        ge=1,
        description="Steps of every training (regime steps); default those of the largest selection's passes.",
    )
    batch_size: int = setting("training", 8, ge=1, description="Examples per step.")
    learning_rate: float = setting("training", 3e-4, gt=0, description="Peak learning rate of AdamW.")
    schedule: Schedule = setting(
        "training", "cosine", description="How the rate falls after its rise: cosine or linear to zero, or constant."
    )
    rise: float = setting("training", 0.03, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    lora_rank: int = setting("training", 8, ge=1, description="Rank of the adapter.")
    lora_alpha: float = setting("training", 32, gt=0, description="Scale of the adapter (alpha).")
    lora_dropout: float = setting("training", 0.0, ge=0, lt=1, description="Dropout of the adapter while it trains.")
    lora_targets: tuple[str, ...] = setting(
        "training", (), description="Linear layers to adapt; default the attention projections."
    )

    # what it is measured on
    heldout_rows: int = setting(
        "measured", 64, ge=0, description="Held-out examples of each dataset that the loss is measured on, at most; 0 for all."
    )
    heldout_files: tuple[str, ...] = setting(
        "measured", (), description="Files of your own to measure the loss on, instead of the rows that the root holds out."
    )
    tasks: str | None = setting("measured", None, description="Folder with task data (docs/evaluation.md); default no tasks.")
    task: tuple[TaskName, ...] = setting("measured", (), description="Tasks to measure; default all whose data is in the folder.")
    task_items: tuple[str, ...] = setting(
        "measured",
        (),
        description="Questions of each part of a task, at most: a number for all tasks, TASK=NUMBER for one; default all.",
    )
    protocol: Literal["chat", "paper"] = setting(
        "measured",
        "chat",
        description="How tasks are asked and scored: in the model's chat template, or as by the scripts released with LESS and "
        "TAGCOS, to compare with their papers (docs/evaluation.md).",
    )

    # machine
    device: str | None = setting("machine", None, description=_of_run("device"))
    batch_tokens: int | None = setting(
        "machine", None, ge=8, description="Tokens per pass; default 1024 on a CPU, on a GPU what fits."
    )
    memory_limit: float | None = setting("machine", None, gt=0, description="GiB that training may take; default what is free.")
    run_on: Literal["threads", "processes", "ray"] | None = setting(
        "machine",
        None,
        description="Where trials are trained: threads of this process, processes, or a Ray cluster; default: processes if there "
        "are several workers.",
    )
    workers: int = setting(
        "machine",
        1,
        ge=1,
        description="Trials trained at a time; each worker loads the model, on a GPU of its own if any.",
    )
    gpus_per_worker: float = setting("machine", 0.0, ge=0, description=_of("gpus_per_worker"))
    threads: int | None = setting("machine", None, ge=1, description=_of("threads"))
    wait: float = setting("machine", 60.0, ge=0, description="Seconds to wait for a catalog or root that another process holds.")

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
            raise ValueError(f"name a method in addition to {FULL}: a comparison needs something to compare")
        return value

    @field_validator("against")
    @classmethod
    def _method(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"{value!r} is unknown; choose from {', '.join(METHODS)}")
        return value

    @field_validator("task_items", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        values = () if value is None else value if isinstance(value, list | tuple) else (value,)
        # TOML and forms have whole numbers as floats, too
        whole = (int(item) if isinstance(item, float) and item.is_integer() else item for item in values)
        return tuple(dict.fromkeys(map(str, whole)))

    @field_validator("task_items")
    @classmethod
    def _limits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        limits = [item.rpartition("=") for item in value]
        for item, (task, equals, number) in zip(value, limits, strict=True):
            if (equals and task not in TASK_NAMES) or not number.isdecimal() or int(number) < 1:
                known = ", ".join(TASK_NAMES)
                raise ValueError(f"{item!r} is neither a number of at least 1 nor TASK=NUMBER with a task among {known}")
        if len({task for task, _, _ in limits}) < len(limits):
            raise ValueError(f"{', '.join(value)} limit the same twice: give one number for all tasks, one for each")
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
        return tuple(dict.fromkeys(_written(changed(item)) for item in value))

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        if self.task and not self.tasks:
            raise ValueError("task names what to measure, tasks the folder with its data: give both")
        for name in ("method", "fraction", "regime"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        check_workers(self.run_on, self.workers, self.gpus_per_worker)
        return self

    def items_of_task(self) -> dict[str, int]:
        """Return the limits on questions.

        Returns
        -------
        dict
            Questions of each part, at most, by task; tasks without a limit are left out.
        """
        given = {task: int(number) for task, _, number in (item.rpartition("=") for item in self.task_items)}
        limits = {task: given.get(task, given.get("")) for task in TASK_NAMES}
        return {task: limit for task, limit in limits.items() if limit is not None}


check_declared(Evaluation)
# what identifies an evaluation, with pool, model and rows measured on; the other fields decide how much of it is done
TRAINING_FIELDS = decided_by(Evaluation, "training")


def changed(setting: str) -> dict[str, Any]:
    """Read a value of `vary`: `NAME=VALUE`, several joined by `;`, or OWN.

    Parameters
    ----------
    setting
        As given by the user.

    Returns
    -------
    dict
        Checked values of a run's settings, by name; empty for OWN.

    Raises
    ------
    ValueError
        It names no setting that can be varied, one twice, or a wrong value.
    """
    given: dict[str, str] = {}
    for item in [] if setting == OWN else setting.split(";"):
        name, equals, text = (part.strip() for part in item.partition("="))
        if not equals or name not in VARIED or name in given:
            raise ValueError(f"{setting!r} is neither {OWN!r} nor NAME=VALUE with a name among {', '.join(VARIED)}")
        given[name] = text
    try:
        found = Settings.model_validate(given)
    except ValidationError as error:
        raise ValueError(wrong_values(error)) from None
    return {name: getattr(found, name) for name in given}


def _written(changes: dict[str, Any]) -> str:
    """Changes as a value of `vary`, equal ones alike."""
    texts = {name: ("".join(value) or "none") if isinstance(value, tuple) else value for name, value in changes.items()}
    return "; ".join(f"{name}={text}" for name, text in texts.items()) or OWN


def varied(method: str, vary: tuple[str, ...]) -> tuple[str, ...]:
    """Reduce the values of `vary` to the settings that a method reads.

    Parameters
    ----------
    method
        Name of the method.
    vary
        Values of `Evaluation.vary`.

    Returns
    -------
    tuple of str
        Each once, without those that change nothing for the method; OWN alone where none is left.
    """
    known = METHODS[method]
    read = (
        *OF_ANY,
        *OF_CLUSTERS * (known.within == "clusters"),
        *OF_FEATURES * (known.reads_features or known.needs_target),
        *known.settings,
    )
    kept = [_written({name: value for name, value in changed(item).items() if name in read}) for item in vary]
    return tuple(dict.fromkeys(new for new, item in zip(kept, vary, strict=True) if new != OWN or item == OWN)) or (OWN,)


def load_evaluation(values: dict[str, Any]) -> Evaluation:
    """Checked settings. UserError naming each wrong value."""
    try:
        return Evaluation(**values)
    except ValidationError as error:
        raise UserError(wrong_values(error) + "; see `tagcos evaluate --help`") from error
