"""The registry of selection methods, and the type of a method.  n examples of a group, k chosen, D feature dimension.

To add a method, write a module that defines one `Method` and name it in `METHODS`; docs/controls.md describes the method to its
users. Importing this module loads no method, so that the command line can list the names quickly.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np

    from tagcos_stream.selection.targets import TargetRows
    from tagcos_stream.types import RowBlocks

Within = Literal["clusters", "strata", "datasets", "pool"]
COLUMNS = (
    "draw",
    "target_tokens",
    "loss",
    "norm",
    "ifd",
    "distance",
    "reference",
)  # properties of an example that are known without reading its feature
SLOW = 1e13  # multiplications above which the user is warned: minutes on a few cores


@dataclass(frozen=True)
class Group:
    """What a method is given of one group of n examples."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,) each: those that the method names
    features: np.ndarray | RowBlocks | None = None  # (n, D); None where the method reads none
    mean: np.ndarray | None = None  # (D,) of the features, where it is known; with a target set, of the target in the group
    wanted: TargetRows | None = None  # the target set; only for methods that need one
    earlier: np.ndarray | None = None  # (m,) int64: rows that the selection before has; None where none are to be kept
    costs: np.ndarray | None = None  # (n,) int64, tokens of each row, where the budget is in tokens
    first_rows: int | None = None  # rows to ask for at first where the budget is in tokens
    pinned: np.ndarray | None = None  # (p,) int64: rows that must be chosen; only for methods that account for them
    threads: int | None = None  # for the mean of the features; None: all cores

    @property
    def rows(self) -> np.ndarray | RowBlocks:
        """(n, D) features."""
        assert self.features is not None, "the method reads features, but does not declare it"
        return self.features

    @cached_property
    def target(self) -> np.ndarray:
        """(D,) what to stand for: the mean of the features, or that of a target set.

        Takes a pass over the rows where it is not known.
        """
        if self.mean is not None:
            return self.mean
        import numpy as np

        from tagcos_stream.clustering.sums import Sums
        from tagcos_stream.types import ArrayRows

        rows = ArrayRows(self.rows) if isinstance(self.rows, np.ndarray) else self.rows
        return Sums.of(rows, np.zeros(rows.n_rows, np.int64), 1, threads=self.threads).means()[0]


@dataclass(frozen=True)
class Choice:
    """Rows chosen from a group of n rows, in order of choice, and the final score of every row.

    Scores, rounds and residuals may cover only the first j chosen rows; the others were kept from an earlier selection.
    """

    indices: np.ndarray  # (k,) int64: rows of the group
    scores: np.ndarray  # (j,) float64: score at the moment of choice; NaN if only a random draw decided
    margins: np.ndarray  # (n,) float: score of every row after the last choice; the largest one left would be next
    weights: np.ndarray | None = None  # (k,) float64, not negative; None if the method gives none
    rounds: np.ndarray | None = None  # (j,) int32: of the pursuit
    residuals: np.ndarray | None = None  # (j,) float64: of the pursuit
    residual: float | None = None  # of the pursuit
    stats: dict[str, Any] = field(default_factory=dict)  # counts of the work done


@dataclass(frozen=True)
class Limits:
    """Resource limits of one choice, and its progress callback."""

    memory: int | None = None  # bytes on top of the features
    threads: int | None = None  # None: all cores
    progress: Callable[[int, int], None] = lambda done, total: None  # rows chosen so far, budget


class Choose(Protocol):
    """The function of a selection method."""

    def __call__(self, group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
        """Choose `budget` rows of one group.

        Parameters
        ----------
        group
            The group of n examples: the columns and features that the method declares.
        budget
            Rows to choose, at most n; tokens to spend where the group has costs, which only methods with weights are given.
            Pinned rows count.
        settings
            Exactly the settings declared in `Method.settings`; reading another one is a KeyError.
        limits
            Memory, threads and the progress callback.

        Returns
        -------
        Choice
            The chosen rows and the scores of all rows.
        """
        ...


@dataclass(frozen=True)
class Words:
    """Descriptions of a score for the macro `why` and the report: format strings with one field, such as "loss {:.4g}"."""

    chosen: str  # of an example that was chosen
    left: str = ""  # of one that was not; by default the same
    scale: float = 1.0  # the score is multiplied by it first
    unscored: str | None = None  # of an example chosen without a score

    def __post_init__(self) -> None:
        if not self.left:
            object.__setattr__(self, "left", self.chosen)


@dataclass(frozen=True)
class Method:
    """A selection method.

    Parameters
    ----------
    name
        Value of the setting `method`; the key in `METHODS`.
    within
        The groups that share the budget: "clusters" of the features, "strata" (dataset by quarter of length), "datasets" (equal
        parts, or by weight), or "pool".
    choose
        Chooses from one group; called once per group, in any process.
    words
        Descriptions of a score.
    reference
        Paper and its address; empty if there is none.
    seeded
        Whether the selection depends on a seed (of draws or of the clustering).
    weights
        Whether chosen examples get weights.
    features
        Whether it reads the feature rows of a group (`Group.rows`, `Group.target`).
    columns
        Those of `COLUMNS` that it reads (`Group.columns`).
    settings
        Settings that `choose` reads; each must decide "choice" (tagcos_stream/config.py). A method that reads `sticky` keeps
        earlier choices (`Group.earlier`).
    needs_target
        Whether it chooses by the examples of a target set (`Group.wanted`), and so is refused without one.
    begins_with_pins
        Whether it chooses the pinned rows (`Group.pinned`) first and the others by what these leave; methods with weights always
        do. Any other is given only the rows that are not pinned.
    multiplications
        (rows, budget, D) -> number of multiplications; None unless the cost grows with rows times budget.
    peak_bytes
        (rows, budget, D) -> memory that a choice takes, bytes. A method that says it chooses from several groups at the same
        time, as far as there is memory; by default the groups come one after the other.

    Raises
    ------
    TypeError, ValueError
        `choose` is not callable, `within` or a column is unknown, or `words` have no field for a score. Raised when the module
        of the method is imported.
    """

    name: str
    within: Within
    choose: Choose
    words: Words
    reference: str = ""
    seeded: bool = False
    weights: bool = False
    features: bool = False
    columns: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs_target: bool = False
    begins_with_pins: bool = False
    multiplications: Callable[[int, int, int], float] | None = None
    peak_bytes: Callable[[int, int, int], int] | None = None

    def __post_init__(self) -> None:
        if not callable(self.choose):
            raise TypeError(f"method {self.name}: choose must be a function, not {self.choose!r}")
        if self.within not in get_args(Within):
            raise ValueError(f"method {self.name}: within {self.within!r} must be one of {', '.join(get_args(Within))}")
        if unknown := set(self.columns) - set(COLUMNS):
            raise ValueError(f"method {self.name}: unknown columns {sorted(unknown)}; choose from {', '.join(COLUMNS)}")
        for words in (self.words.chosen, self.words.left):
            if words.format(1.5) == words:
                raise ValueError(f"method {self.name}: words {words!r} have no field for the score, such as {{:.4g}}")

    @property
    def accounts_for_pins(self) -> bool:
        """Whether it is given pinned rows."""
        return self.weights or self.begins_with_pins

    @property
    def reads_features(self) -> bool:
        """Whether the choice depends on features, by their rows or by their clusters."""
        return self.features or self.within == "clusters"

    def warning(self, rows: int, budget: int, dim: int) -> str | None:
        """Return a warning for the user if a choice will take long.

        Parameters
        ----------
        rows, budget, dim
            Rows of the group, rows to choose, and D.

        Returns
        -------
        str or None
            None if it is quick.
        """
        cost = 0.0 if self.multiplications is None else self.multiplications(rows, budget, dim)
        if cost < SLOW:
            return None
        return f"{self.name} on {rows} rows takes about {cost:.0e} multiplications; herding-clusters and tagcos take far fewer"


class Registry(Mapping[str, Method]):
    """Methods by name. A method's module is imported when the method is first looked up."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._loaded: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        if name not in self._loaded:
            module, _, attribute = self._places[name].partition(":")
            method = getattr(importlib.import_module(module), attribute)
            if not isinstance(method, Method) or method.name != name:
                raise TypeError(f"method {name} is registered as {self._places[name]}, which is {method!r}")
            self._loaded[name] = method
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def modules(self) -> set[str]:
        """List the modules that define the methods.

        Returns
        -------
        set of str
            Their names.
        """
        return {place.partition(":")[0] for place in self._places.values()}


METHODS = Registry(
    {
        "tagcos": "tagcos_stream.selection.tagcos:TAGCOS",
        "omp": "tagcos_stream.selection.tagcos:OMP",
        "random": "tagcos_stream.selection.uniform:RANDOM",
        "stratified": "tagcos_stream.selection.stratified:STRATIFIED",
        "longest": "tagcos_stream.selection.longest:LONGEST",
        "hardest": "tagcos_stream.selection.hardest:HARDEST",
        "gradient-norm": "tagcos_stream.selection.gradient_norm:GRADIENT_NORM",
        "perplexity": "tagcos_stream.selection.perplexity:PERPLEXITY",
        "ifd": "tagcos_stream.selection.ifd:IFD",
        "kcenter": "tagcos_stream.selection.kcenter:KCENTER",
        "centroid": "tagcos_stream.selection.centroid:CENTROID",
        "herding": "tagcos_stream.selection.herding:HERDING",
        "herding-clusters": "tagcos_stream.selection.herding:HERDING_CLUSTERS",
        "facility-location": "tagcos_stream.selection.facility_location:FACILITY_LOCATION",
        "log-det": "tagcos_stream.selection.log_det:LOG_DET",
        "spice": "tagcos_stream.selection.log_det:SPICE",
        "balanced": "tagcos_stream.selection.balanced:BALANCED",
        "length-matched": "tagcos_stream.selection.length_matched:LENGTH_MATCHED",
        "shuffled": "tagcos_stream.selection.shuffled:SHUFFLED",
        "less": "tagcos_stream.selection.less:LESS",
        "rds": "tagcos_stream.selection.rds:RDS",
    }
)


def described() -> list[dict[str, Any]]:
    """Describe every method for the catalog table `methods`, which SQL reads to explain scores.

    Returns
    -------
    list of dict
        One row per method.
    """
    return [
        {
            "method": method.name,
            "within": method.within,
            "weights": method.weights,
            "seeded": method.seeded,
            "reference": method.reference,
            "words_chosen": method.words.chosen,
            "words_left": method.words.left,
            "words_unscored": method.words.unscored,
            "scale": method.words.scale,
        }
        for method in METHODS.values()
    ]
