"""Scores of all methods as the tables want them: named rows, averages over sets, comparisons with their errors."""

from dataclasses import dataclass

from experiments.classification.registry import METHODS, REFERENCE
from experiments.common.images import CLEAN
from experiments.common.metrics import AUROC, MEASURES, NLL, Score, higher_is_better, mean
from experiments.common.store import Row

Sets = list[str]
"""Names of sets of the same images, over which a measure is averaged."""


@dataclass(frozen=True)
class Contender:
    """One method with one way of averaging its probabilities."""

    name: str
    key: str
    way: str
    family: str
    scores: dict[str, dict[str, Score]]
    """Measure -> set -> score; sets of AUROC are the foreign ones."""

    def score(self, names: Sets, measure: str) -> Score | None:
        """The mean of a measure over sets of the same images (one is its own mean); None where it has none."""
        known = self.scores.get(measure, {})
        return mean([known[name] for name in names]) if names and all(name in known for name in names) else None

    @property
    def competes(self) -> bool:
        """The reference shows what more samples would change, and takes no part in a comparison."""
        return self.key != REFERENCE


def contenders(rows: dict[str, Row], order: tuple[str, ...]) -> list[Contender]:
    """One for every method and way of averaging, in the order of the methods."""
    found = []
    for key in order:
        row = rows.get(key, Row({}))
        for way in row.get(NLL, {}).get(CLEAN, {}):
            scores = {
                measure: {name: Score(*ways[way]) for name, ways in row[measure].items() if way in ways}
                for measure in (*MEASURES, AUROC)
                if measure in row
            }
            name = METHODS[key].name + (f" ({way})" if way else "")
            found.append(Contender(name, key, way, METHODS[key].family, scores))
    return found


def best(those: list[Contender], names: Sets, measure: str) -> tuple[Contender, Score] | None:
    """The one with the best mean over the sets."""
    scored = [(one, score) for one in those if (score := one.score(names, measure)) is not None]
    sign = -1 if higher_is_better(measure) else 1
    return min(scored, key=lambda pair: sign * pair[1].value, default=None)


def behind(one: Contender, others: list[Contender], names: Sets, measure: str) -> tuple[str, float, float] | None:
    """The best of the others, by how much this one is worse than it (negative: better), and the error of that."""
    own, found = one.score(names, measure), best(others, names, measure)
    if own is None or found is None:
        return None
    difference, error = own.minus(found[1])
    return found[0].name, -difference if higher_is_better(measure) else difference, error
