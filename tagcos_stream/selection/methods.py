"""The registry of selection methods, and what a method is.  n examples of a group, k chosen, D feature dimension.

To add a method, write a module that defines one `Method` and name it in `METHODS`; docs/controls.md describes the method to its
users. Importing this module loads no method, so that the command line can list the names quickly.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tagcos_stream.types import RowBlocks

Within = Literal["clusters", "strata", "pool"]
COLUMNS = ("draw", "target_tokens", "loss", "norm", "distance")  # what is known of an example without reading its feature
SLOW = 1e13  # multiplications that deserve a warning: minutes on a few cores


@dataclass(frozen=True)
class Group:
    """What a method is given of one group of n examples."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,) each: those that the method names
    features: np.ndarray | RowBlocks | None = None  # (n, D); None where the method reads none
    mean: np.ndarray | None = None  # (D,) of the features, where it is known
    earlier: np.ndarray | None = None  # (m,) int64: rows that the selection before has; None where none are to be kept

    @property
    def rows(self) -> np.ndarray | RowBlocks:
        """(n, D) features."""
        assert self.features is not None, "the method reads features, but does not declare it"
        return self.features

    @cached_property
    def target(self) -> np.ndarray:
        """(D,) the mean of the features; takes a pass over the rows where it is not known."""
        if self.mean is not None:
            return self.mean
        import numpy as np

        from tagcos_stream.rows.blocks import group_means
        from tagcos_stream.types import ArrayRows

        rows = ArrayRows(self.rows) if isinstance(self.rows, np.ndarray) else self.rows
        return group_means(rows, np.zeros(rows.n_rows, np.int64), 1)[0]


@dataclass(frozen=True)
class Choice:
    """What was chosen from a group of n rows, in order of choice, and the final score of every row.

    Scores, rounds and residuals may be those of the first j chosen only: the others were kept from an earlier selection.
    """

    indices: np.ndarray  # (k,) int64: rows of the group
    scores: np.ndarray  # (j,) float64: what decided, at the moment of choice; NaN where nothing but a draw did
    margins: np.ndarray  # (n,) float: the score of every row after the last choice; the largest of those left comes next
    weights: np.ndarray | None = None  # (k,) float64, not negative; None where the method gives none
    rounds: np.ndarray | None = None  # (j,) int32: of the pursuit
    residuals: np.ndarray | None = None  # (j,) float64: of the pursuit
    residual: float | None = None  # of the pursuit
    stats: dict[str, Any] = field(default_factory=dict)  # what it cost


@dataclass(frozen=True)
class Limits:
    """The resources of one choice, and whom to tell how far it is."""

    memory: int | None = None  # bytes on top of the features
    threads: int | None = None  # None: all cores
    progress: Callable[[int, int], None] = lambda done, total: None  # rows chosen so far, budget


class Choose(Protocol):
    """The function that makes a selection method: choose `budget` rows of one group.

    `settings` holds exactly the settings that the method declares in `Method.settings`; reading another is a KeyError.
    """

    def __call__(self, group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice: ...


@dataclass(frozen=True)
class Words:
    """How `tagcos why` and the report state a score: format strings with one field, such as "loss {:.4g}"."""

    chosen: str  # of an example that was chosen
    left: str  # of one that was not
    scale: float = 1.0  # the score is multiplied by it first
    unscored: str | None = None  # of an example that was chosen without a score


@dataclass(frozen=True)
class Method:
    """A selection method.

    Parameters
    ----------
    name
        As the setting `method` takes it; the key in `METHODS`.
    within
        The groups that share the budget: "clusters" of the features, "strata" (dataset by quarter of length), or "pool".
    choose
        Chooses from one group; called once a group, in any process.
    words
        What a score means.
    reference
        Paper and address; empty for what needs none.
    seeded
        Another seed (of draws, or of the clustering) makes another selection.
    weights
        Chosen examples get weights.
    features
        Reads the feature rows of a group (`Group.rows`, `Group.target`).
    columns
        Of `COLUMNS`, those read of every example (`Group.columns`).
    settings
        Settings that `choose` reads; each must decide "choice" (tagcos_stream/config.py). A method that reads `sticky` keeps
        earlier choices (`Group.earlier`).
    multiplications
        (rows, budget, D) -> multiplications, where the cost grows with rows times budget.

    Raises
    ------
    TypeError, ValueError
        `choose` cannot be called, an unknown group or column, or words that format no score: when the module is imported.
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
    multiplications: Callable[[int, int, int], float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.choose):
            raise TypeError(f"method {self.name}: choose must be a function, not {self.choose!r}")
        if self.within not in ("clusters", "strata", "pool"):
            raise ValueError(f"method {self.name}: within {self.within!r} must be clusters, strata or pool")
        if unknown := set(self.columns) - set(COLUMNS):
            raise ValueError(f"method {self.name}: unknown columns {sorted(unknown)}; choose from {', '.join(COLUMNS)}")
        for words in (self.words.chosen, self.words.left):
            if words.format(1.5) == words:
                raise ValueError(f"method {self.name}: words {words!r} have no field for the score, such as {{:.4g}}")

    @property
    def reads_features(self) -> bool:
        """Whether features decide anything: their rows, or the clusters they form."""
        return self.features or self.within == "clusters"

    def warning(self, rows: int, budget: int, dim: int) -> str | None:
        """What to tell the user before a choice that takes long; None for a quick one."""
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
        """The modules that define the methods."""
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
        "kcenter": "tagcos_stream.selection.kcenter:KCENTER",
        "centroid": "tagcos_stream.selection.centroid:CENTROID",
        "herding": "tagcos_stream.selection.herding:HERDING",
        "herding-clusters": "tagcos_stream.selection.herding:HERDING_CLUSTERS",
    }
)


def described() -> list[dict[str, Any]]:
    """One plain row a method, for the catalog table `methods`: what a shell needs to explain a score."""
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
