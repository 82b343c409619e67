"""Scores of all methods as the tables want them: named rows, averages over sets, comparisons with their errors."""

from dataclasses import dataclass
from typing import Any

from classification.data import CLEAN
from classification.metrics import HIGHER_IS_BETTER, Score
from classification.registry import METHODS, REFERENCE


@dataclass(frozen=True)
class Row:
    """One method with one way of averaging its probabilities."""

    name: str
    key: str
    way: str
    family: str
    sets: dict[str, dict[str, Score]]
    """Set -> measure -> score."""
    auroc: dict[str, Score]

    def score(self, names: list[str], measure: str) -> Score | None:
        """The mean of a measure over sets of the same images (one is its own mean); None where it has none."""
        found = [self.sets[name][measure] for name in names if name in self.sets and measure in self.sets[name]]
        return mean(found) if found and len(found) == len(names) else None

    @property
    def competes(self) -> bool:
        """The reference shows what more samples would change, and takes no part in a comparison."""
        return self.key != REFERENCE


def rows_of(methods: dict[str, dict[str, Any]], order: tuple[str, ...]) -> list[Row]:
    """A row for every method and way of averaging, in the order of the methods."""
    rows = []
    for key in order:
        found = methods.get(key, {})
        for way in found.get("sets", {}).get(CLEAN, {}):
            sets = {n: {m: Score(*s) for m, s in ways[way].items()} for n, ways in found["sets"].items() if way in ways}
            areas = {n: Score(*ways[way]) for n, ways in found["auroc"].items() if way in ways}
            name = METHODS[key].name + (f" ({way})" if way else "")
            rows.append(Row(name, key, way, METHODS[key].family, sets, areas))
    return rows


def mean(found: list[Score]) -> Score:
    """Of scores on sets that are cut into the same parts."""
    count = len(found)
    without = [sum(values) / count for values in zip(*(score.without for score in found), strict=True)]
    return Score(sum(score.value for score in found) / count, without)


def best(rows: list[Row], names: list[str], measure: str) -> tuple[Row, Score] | None:
    """The row with the best mean over the sets."""
    scored = [(row, score) for row in rows if (score := row.score(names, measure)) is not None]
    if not scored:
        return None
    sign = -1 if measure in HIGHER_IS_BETTER else 1
    return min(scored, key=lambda pair: sign * pair[1].value)


def behind(row: Row, others: list[Row], names: list[str], measure: str) -> tuple[str, float, float] | None:
    """The best of the others, by how much the row is worse than it (negative: better), and the paired error of that."""
    own, found = row.score(names, measure), best(others, names, measure)
    if own is None or found is None:
        return None
    other, score = found
    difference, error = own.minus(score)
    return other.name, -difference if measure in HIGHER_IS_BETTER else difference, error
