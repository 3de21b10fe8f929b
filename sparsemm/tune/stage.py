"""The tune stage: searches the method for one checkpoint, proves it on other pages, and writes its recipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from sparsemm.errors import ParamsError, SparseMMError
from sparsemm.evaluate.rows import FULL, OVERALL, Arm, Row
from sparsemm.files import sha256_file, write_csv
from sparsemm.params import Params
from sparsemm.policies import is_drawn, method_options, policy_class
from sparsemm.recipes import BASELINE, Choice, Comparison, Data, Recipe
from sparsemm.statistics import BETTER, WORSE
from sparsemm.tune.candidates import make_candidate
from sparsemm.tune.measure import Tuner, reads_again, with_means
from sparsemm.tune.search import TRIED, WORK, Search, tabulated

EVIDENCE = {  # field of a comparison -> column of the table
    **{
        name: name for name in ("against", "task", "budget", "value", "diff", "verdict", "kept_slots", "bytes", "pages")
    },
    **{"method": "setting", "low": "ci_low", "high": "ci_high", "diff_low": "diff_ci_low", "diff_high": "diff_ci_high"},
}


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Writes artifacts/recipes/<key>.json, the recipe, and <key>.csv, everything that was tried.

    A stopped run is resumed: no answer is asked for twice. It prints how many answers it needs, and about how long they
    take, before it begins.

    Raises:
        ParamsError: if params.yaml has no such model, or no part `tune`.
        DataError: if the evaluation pages are missing or too few.
        ScoreTableError: if the score table is missing or of another model.
    """
    params = params.of(key)
    if params.tune is None:
        raise ParamsError("no part `tune`", where="params.yaml", hint="`sparsemm params --schema` explains its keys")
    tuner = Tuner(params, key, root)
    searches = {scenario: Search(tuner, scenario) for scenario in params.tune.scenarios}
    announce(tuner, searches.values())
    rows: list[Row] = []
    scenarios = {}
    for scenario, search in searches.items():
        scenarios[scenario], tried = choose(search)
        rows += tried
        print(f"{scenario}: {scenarios[scenario].method}. {scenarios[scenario].why}", flush=True)
    header = tuner.scores.header
    recipe = Recipe(
        format=1,
        model=header["model"],
        revision=header["revision"],
        fingerprint=header["fingerprint"],
        scores=tuner.scores.digest(),
        data=Data(
            dataset=params.evaluate.dataset,
            sha256=sha256_file(tuner.pages),
            search=tuner.searched,
            confirmation=params.tune.samples - tuner.searched,
        ),
        budgets=params.tune.budgets,
        scenarios=scenarios,
        versions={name: version(name) for name in ("sparsemm", "torch", "transformers")},
    )
    folder = root / "artifacts" / "recipes"
    write_csv(folder / f"{key}.csv", [*TRIED, *([WORK] if any(WORK in row for row in rows) else [])], rows)
    recipe.save(folder / f"{key}.json")
    tuner.store.clear()


def announce(tuner: Tuner, searches: Iterable[Search]) -> None:
    """Prints how many answers are needed, and about how long they take, from the time of the first ones.

    The first ones are those of `BASELINE` to the pages of the first round. Their time is kept with them, for a run that
    is resumed. Where a method reads pages again, their number and the work of these methods is printed too.
    """
    first = [make_candidate(BASELINE, tuner.usual, tuner.usual)]
    pages, total, again, minutes = min(tuner.options.first, tuner.searched), 0, 0, 0.0
    for search in searches:

        def seconds(scenario: str = search.scenario) -> float:
            _ = tuner.model  # loading it is no part of the time
            begin = time.perf_counter()
            tuner.measure(scenario, first, 0, pages)
            return time.perf_counter() - begin

        spent = tuner.store.once(f"seconds, {search.scenario}", seconds)
        each, needed = spent / tuner.generations(search.scenario, first, pages), search.generations()
        print(
            f"tune {tuner.key}, scenario {search.scenario}: {len(search.candidates)} candidates, {needed} answers, "
            f"{each:.2f} s each",
            flush=True,
        )
        total, minutes = total + needed, minutes + needed * each / 60
        readings, seconds_each = announce_rereadings(search)
        again, minutes = again + readings, minutes + readings * seconds_each / 60
    readings_too = f" and at most {again} readings" if again else ""
    total_text = f"{total} answers{readings_too}, about {minutes:.1f} minutes"
    print(f"tune {tuner.key}: {total_text}; a stopped run is resumed", flush=True)


def announce_rereadings(search: Search) -> tuple[int, float]:
    """Prints how many readings of a page the methods that read pages again need at most, and the work of such a method.

    Returns their number and the seconds of one. If the model cannot read a page again, these candidates have failed.
    """
    if not search.rereadings():
        return 0, 0.0
    try:
        cost = search.tuner.rereading(search.scenario)
    except SparseMMError as error:
        again = [one.name for one in (*search.candidates, *search.against) if reads_again(one.method)]
        search.failures |= dict.fromkeys(again, str(error))
        return 0, 0.0
    names = dict.fromkeys(one.method for one in (*search.candidates, *search.against) if reads_again(one.method))
    number = search.rereadings()
    print(
        f"tune {search.tuner.key}, scenario {search.scenario}: at most {number} readings of a page, "
        f"{cost.seconds:.2f} s each, for {', '.join(names)}, which run {cost.work:.1f} times the prompt's tokens "
        "before an answer begins",
        flush=True,
    )
    return number, cost.seconds


def choose(search: Search) -> tuple[Choice, list[Row]]:
    """Searches one scenario, measures the winner on the other pages, and returns the choice and all rows."""
    tuner = search.tuner
    winner = search.winner()
    tried, failed = search.rows(), sum(one.name in search.failures for one in search.candidates)
    proven = {one.name: one for one in (winner, *search.against)}
    outcomes = with_means(search.measure(list(proven.values()), tuner.searched, tuner.options.samples))
    answered = {arm.setting for arm in outcomes}

    def against(arm: Arm) -> list[Arm]:
        others = list(proven) if arm.setting == winner.name else [BASELINE]
        return [arm._replace(setting=name, budget=None if name == FULL else arm.budget) for name in others]

    rows = tabulated(tuner, outcomes, against)
    comparisons = [_comparison(row) for row in rows if row["against"]]
    usable = [one for one in proven if one in answered and policy_class(proven[one].method).compresses]
    usable = [one for one in usable if not is_drawn(proven[one].method)]  # controls are no recipes
    name, why = decide(winner.name, comparisons, usable, [one for one in usable if reads_again(proven[one].method)])
    chosen = proven[name]
    work = search.work(chosen.method)
    if work > 1:
        why += f" It reads each page again: {work:.1f} times the prompt's tokens run before an answer begins."
    options = {k: v for k, v in (tuner.settings | dict(chosen.options)).items() if k in method_options(chosen.method)}
    choice = Choice(
        name=name,
        method=chosen.method,
        options={name: value for name, value in options.items() if name != "seed"},
        winner=winner.name,
        candidates=len(search.candidates),
        failed=failed,
        why=" ".join(filter(None, (why, search.passed_over))),
        prefill_work=work,
        evidence=tuple(row for row in comparisons if row.method in (name, winner.name)),
    )
    head = {"scenario": search.scenario, "split": "confirmation", "rounds": ""}
    outcome = {winner.name: "won the search"} | {name: "chosen"}
    tried += [row | head | {"outcome": outcome.get(row["setting"], "")} for row in rows]
    tried += [search.failed(one, "confirmation") for one in proven if one not in answered]
    return choice, search.with_work(tried)


def decide(
    winner: str, comparisons: Sequence[Comparison], names: Sequence[str], costly: Sequence[str] = ()
) -> tuple[str, str]:
    """Returns the method that is chosen, and why.

    The winner of the search is chosen if it is safe: better than uniform SnapKV at equal slots beyond the 95 % interval
    of the mean over tasks and budgets, worse in no task, and no control. Otherwise the best safe one of the methods
    beside it is chosen, and SnapKV itself if there is none. Of these, one that reads pages again is the last resort. A
    winner that reads pages again also gives way to a safe method that does not and is as accurate on the last pages.

    Args:
        winner: name of the winner.
        comparisons: of all methods with SnapKV, on pages the search never saw.
        names: methods that may be chosen: neither a control nor one that cannot serve the last pages.
        costly: those of them that read pages again.
    """
    rows = {(row.method, row.task): row for row in comparisons if row.against == BASELINE and row.budget is None}

    def safe(name: str) -> bool:
        own = [row for (method, _), row in rows.items() if method == name]
        return rows[name, OVERALL].verdict == BETTER and not any(row.verdict == WORSE for row in own)

    pages = comparisons[0].pages if comparisons else 0
    if winner == BASELINE:
        return BASELINE, f"{BASELINE} itself won the search."
    others = [name for name in names if name not in (winner, BASELINE) and safe(name)]
    best = max(others, key=lambda name: (name not in costly, rows[name, OVERALL].value), default=BASELINE)
    kind = "the best method that is safe" if others else "the safe choice"
    if winner not in names:
        return best, f"{winner} won the search but is a control or fails on other pages, so {best} is used, {kind}."
    overall = rows[winner, OVERALL]
    measured = f"{overall.difference.text('+')} against {BASELINE} at equal slots on {pages} pages not searched on"
    if safe(winner):
        reached = [name for name in others if name not in costly and rows[name, OVERALL].value >= overall.value]
        if winner in costly and reached:
            reason = f"{best} is as accurate there and reads pages once, so it is used"
            return best, f"{winner} won the search and is better ({measured}), but {reason}."
        return winner, f"{winner} won the search and is better: {measured}."
    worse = [task for (method, task), row in rows.items() if method == winner and row.verdict == WORSE]
    reason = f"is worse in {', '.join(worse)}" if worse else "is not shown to be better"
    return best, f"{winner} won the search but {reason} ({measured}), so {best} is used, {kind}."


def _comparison(row: Row) -> Comparison:
    """Returns the row of a comparison as evidence; an empty cell is None."""
    cells = {name: row[column] for name, column in EVIDENCE.items()}
    return Comparison.model_validate({name: None if cell == "" else cell for name, cell in cells.items()})
