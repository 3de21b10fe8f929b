"""Which documents the tables are about, where they come from, and whether the scores may have seen them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsemm.evaluate.tasks import LOCAL
from sparsemm.evaluate.tasks.published import PUBLISHED
from sparsemm.params import Params
from sparsemm.params.datasets import SyntheticParams, may_share
from sparsemm.report.results import Results, Row

NONE = "no task has been evaluated yet"
RATE = {"word_accuracy": " (one minus the word error rate)"}


def evaluated(results: Iterable[Results]) -> dict[str, list[Row]]:
    """Rows of all models under their task, in the order the tasks were run."""
    found: dict[str, list[Row]] = {}
    for result in results:
        for row in result.evaluation:
            found.setdefault(row["task"], []).append(row)
    return found


def counted(rows: Sequence[Row]) -> str:
    """How many pages and questions rows of one task are about: "96 pages", "9 questions about 4 pages"."""
    asked, seen = {int(row["n"]) for row in rows}, {_pages(row) for row in rows}
    pages = {count for count in seen if count is not None}
    if None in seen:
        return _range(asked, "question")
    return _range(pages, "page") if asked == pages else f"{_range(asked, 'question')} about {_range(pages, 'page')}"


def resampled(rows: Sequence[Row]) -> str:
    """What the bootstrap behind the intervals of these rows goes over."""
    over = "questions" if any(_pages(row) is None for row in rows) else "pages"
    return f"over {over}" + (" (and, for random methods, over draws)" if any(_drawn(row) for row in rows) else "")


def scope(params: Params, results: Iterable[Results]) -> str:
    """Every evaluated task with its documents and where they come from."""
    groups: dict[str, list[str]] = {}
    for task, rows in evaluated(results).items():
        groups.setdefault(f"{counted(rows)} {_origin(params, task)}", []).append(task)
    return "; ".join(f"{', '.join(tasks)}: {said}" for said, tasks in groups.items()) or NONE


def apart(params: Params, results: Iterable[Results]) -> str:
    """What is known of the evaluated documents beside those of the scores; empty where nothing was evaluated.

    Only the two data sets of params.yaml are held against each other, and by name.
    """
    tasks = list(evaluated(results))
    own, others = [t for t in tasks if t in LOCAL], [t for t in tasks if t not in LOCAL]
    chased, asked = params.datasets[params.chase.dataset], params.datasets[params.evaluate.dataset]
    said = []
    if own and may_share(chased, asked) is None:
        drawn = isinstance(chased, SyntheticParams) and isinstance(asked, SyntheticParams)
        how = "drawn from another split than" if drawn else "by their names, which is all that was compared, none of"
        said.append(f"The pages of {', '.join(own)} are {how} those of the scores ({params.chase.dataset!r}).")
    if others:
        said.append(
            f"Whether documents of {', '.join(others)} are among those of the scores ({params.chase.dataset!r}) was "
            "not checked."
        )
    return " ".join(said)


def metrics(results: Iterable[Results]) -> str:
    """The metric of every evaluated task; empty where nothing was evaluated."""
    named = {task: rows[0]["metric"] for task, rows in evaluated(results).items()}
    return "; ".join(f"{task}: {name.replace('_', ' ')}{RATE.get(name, '')}" for task, name in named.items())


def _pages(row: Row) -> int | None:
    """Pages behind a row: its own column, which older tables lack; our own tasks ask once about each page."""
    if row.get("pages"):
        return int(row["pages"])
    return int(row["n"]) if row["task"] in LOCAL else None


def _drawn(row: Row) -> bool:
    return int(row.get("draws") or 1) > 1


def _range(counts: set[int], what: str) -> str:
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} {what}{'s' if most != 1 else ''}"


def _origin(params: Params, task: str) -> str:
    if task in LOCAL:
        return f"of {params.evaluate.dataset!r}"
    if task in PUBLISHED and params.evaluate.source == "hub":
        return f"of its split {PUBLISHED[task].split!r} on the hub"
    return f"of its files in {params.evaluate.source!r}"
