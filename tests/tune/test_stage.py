"""The tune stage of the small model: what it writes, what it never mixes, and how it is resumed."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest

from sparsemm.cache.compressed import compressed_cache
from sparsemm.cli import main
from sparsemm.errors import BudgetError, DataError, ParamsError, ScoreTableError
from sparsemm.evaluate.store import Store
from sparsemm.recipes import Recipe
from sparsemm.scores import ScoreTable
from sparsemm.tune.candidates import make_candidate
from sparsemm.tune.measure import Tuner
from sparsemm.tune.stage import run
from tests.studies.crafted import KEY

ENDS = ("json", "csv")


def recipe_file(root, end):
    return root / "artifacts" / "recipes" / f"{KEY}.{end}"


def read(root):
    with open(recipe_file(root, "csv"), newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def copy(root, folder):
    for name in ("datasets", "scores"):
        shutil.copytree(root / "artifacts" / name, folder / "artifacts" / name)
    return folder


@pytest.fixture(scope="session")
def tuned(made, tmp_path_factory):
    """(params, root), after one run."""
    params, root = made
    folder = copy(root, tmp_path_factory.mktemp("tuned"))
    run(params, KEY, folder)
    return params, folder


def test_it_writes_a_recipe_with_its_evidence(tuned):
    params, root = tuned
    recipe = Recipe.load(recipe_file(root, "json"))
    assert list(recipe.scenarios) == ["known", "later"] and recipe.budgets == (12,)
    assert (recipe.data.search, recipe.data.confirmation) == (4, 2)
    for choice in recipe.scenarios.values():
        assert choice.candidates == 4 and choice.failed == 0 and choice.worse() == []
        assert {row.pages for row in choice.evidence} == {2}
        kept = {row.kept_slots for row in choice.evidence if row.budget == 12}
        assert kept == {12.0}  # equal slots, all of them kept
        assert "snapkv" in {choice.name, *(row.against for row in choice.evidence)}
    assert not (root / "artifacts" / "work" / "tune" / KEY).exists()


def test_everything_that_was_tried_is_written(tuned):
    _, root = tuned
    rows = read(root)
    for scenario in ("known", "later"):
        search = [row for row in rows if (row["scenario"], row["split"]) == (scenario, "search")]
        assert {row["setting"] for row in search} == {"snapkv", "snapkv+peak", "sparsemm", "sparsemm+peak"}
        assert {row["n"] for row in search if row["rounds"] == "1"} == {"2"}
        assert {row["n"] for row in search if row["rounds"] == "2"} == {"4"}
        assert len({row["setting"] for row in search if row["rounds"] == "2"}) == 2
        proven = [row for row in rows if (row["scenario"], row["split"]) == (scenario, "confirmation")]
        assert {"full", "sparsemm", "snapkv", "snapkv+random-visual"} <= {row["setting"] for row in proven}
        assert {row["n"] for row in proven} == {"2"} and "chosen" in {row["outcome"] for row in proven}


def test_the_search_never_sees_a_page_of_the_confirmation(made, monkeypatch):
    params, root = made
    asked = {"search": set(), "confirmation": set()}
    real = Tuner.outcomes

    def outcomes(self, tasks, variants, **options):
        for task in tasks.values():
            names = {arm.setting for arm in variants}
            asked["confirmation" if "full" in names else "search"].update(record.id for record in task.records)
        return real(self, tasks, variants, **options)

    monkeypatch.setattr(Tuner, "outcomes", outcomes)
    monkeypatch.setattr(Store, "clear", lambda self: shutil.rmtree(self.folder))
    run(params, KEY, root)
    assert len(asked["search"]) == 4 and len(asked["confirmation"]) == 2
    assert not asked["search"] & asked["confirmation"]


def test_the_cost_is_said_before_the_search_begins(tuned, tmp_path, capsys, monkeypatch):
    params, root = tuned
    folder, seen = copy(root, tmp_path), []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda *values: (seen.extend(values[3]), put(*values)))
    run(params, KEY, folder)
    said = capsys.readouterr().out
    total = int(re.search(r"(\d+) answers, about [\d.]+ minutes; a stopped run is resumed", said)[1])
    assert said.index("answers, about") < said.index("\nknown:")
    winners = {one.winner for one in Recipe.load(recipe_file(folder, "json")).scenarios.values()}
    most = total - sum(2 for one in winners if one in ("snapkv", "sparsemm"))  # that are proven anyway
    assert most <= len(seen) <= total


def test_a_killed_run_is_resumed_and_ends_in_the_same_bytes(tuned, tmp_path, monkeypatch):
    params, root = tuned
    folder, put, kept, most = copy(root, tmp_path), Store.put, [], [5]

    def keep(self, task, name, *arguments):
        if len(kept) == most[0]:
            raise KeyboardInterrupt
        put(self, task, name, *arguments)
        kept.append((task, name))

    monkeypatch.setattr(Store, "put", keep)
    for limit in (5, 9, 999):
        most[0] = limit
        if limit < 999:
            with pytest.raises(KeyboardInterrupt):
                run(params, KEY, folder)
            assert not (folder / "artifacts" / "recipes").exists()
        else:
            run(params, KEY, folder)
    later = [one for one in kept if one[0].startswith("later")]
    assert len(kept) - len(later) == len({*kept} - {*later})  # nothing that was kept was asked again
    for end in ENDS:
        assert recipe_file(folder, end).read_bytes() == recipe_file(root, end).read_bytes()


def test_a_candidate_that_fails_is_a_row_and_no_winner(tuned, tmp_path, monkeypatch):
    params, root = tuned
    folder, real = copy(root, tmp_path), Tuner.variant

    def variant(self, method, budget, **options):
        if method == "sparsemm+peak":
            raise BudgetError("a full head does not fit the budget")
        return real(self, method, budget, **options)

    monkeypatch.setattr(Tuner, "variant", variant)
    run(params, KEY, folder)
    failed = [row for row in read(folder) if row["outcome"].startswith("failed")]
    assert {row["setting"] for row in failed} == {"sparsemm+peak"} and "full head" in failed[0]["outcome"]
    choices = Recipe.load(recipe_file(folder, "json")).scenarios.values()
    assert all(one.failed == 1 and one.winner != "sparsemm+peak" for one in choices)


def test_a_comparison_that_fails_on_the_last_pages_is_a_row(tuned, tmp_path):
    """The budget of 12 does not hold the two whole layers of FastV."""
    params, root = tuned
    tune = params.tune.model_copy(update={"against": (*params.tune.against, "fastv"), "scenarios": ("known",)})
    folder = copy(root, tmp_path)
    run(params.model_copy(update={"tune": tune}), KEY, folder)
    (failed,) = [row for row in read(folder) if row["outcome"].startswith("failed")]
    assert (failed["setting"], failed["split"]) == ("fastv", "confirmation") and "whole layers" in failed["outcome"]
    (choice,) = Recipe.load(recipe_file(folder, "json")).scenarios.values()
    assert choice.failed == 0 and choice == Recipe.load(recipe_file(root, "json")).scenarios["known"]


def test_a_replay_serves_questions_that_come_later(made):
    params, root = made
    tuner = Tuner(params, KEY, root)
    one = make_candidate("sparsemm+kvzip", tuner.usual, tuner.usual)
    (outcome,) = tuner.measure("later", [one], 0, 2).values()
    assert outcome.kept == 12 and len(outcome.values) == 2


def test_a_search_in_which_everything_fails_raises_the_first_error(made, tmp_path, monkeypatch):
    params, root = made

    def variant(self, method, budget, **options):
        raise BudgetError("nothing fits")

    monkeypatch.setattr(Tuner, "variant", variant)
    with pytest.raises(BudgetError, match="nothing fits"):
        run(params, KEY, copy(root, tmp_path))
    assert not (tmp_path / "artifacts" / "recipes").exists()


def test_auto_is_served_by_the_recipe(tuned, tiny):
    params, root = tuned
    model, _ = tiny(KEY)
    table = ScoreTable.load(root / "artifacts" / "scores" / f"{KEY}.safetensors")
    table = table.with_recipe(recipe_file(root, "json"))
    for scenario, choice in table.recipe.scenarios.items():
        cache = compressed_cache(model, "auto", budget=16, scores=table, scenario=scenario)
        own = compressed_cache(model, choice.method, budget=16, scores=table, **choice.options)
        policies = [cache.ragged[0].policy, own.ragged[0].policy]
        assert policies[0] == policies[1] and policies[0].window == choice.options["window"]


def test_a_long_answer_is_measured_and_served_at_the_budget(made, tiny, tmp_path, monkeypatch):
    params, root = made
    change = {
        "scenarios": ("long",),
        "tasks": ("read", "qa"),
        "methods": ("sparsemm",),
        "selectors": ("snapkv", "knorm"),
        "against": ("full", "sparsemm", "snapkv", "random", "snapkv+random-visual"),  # the last rates no answers
    }
    params = params.model_copy(update={"tune": params.tune.model_copy(update=change)})
    folder, real, held = copy(root, tmp_path), Tuner.outcomes, {}

    def outcomes(self, tasks, variants, **options):
        held.update({(arm.setting, arm.budget): one.hold_budget for arm, one in variants.items()})
        assert all(name.startswith("long, read,") for name in tasks)
        return real(self, tasks, variants, **options)

    monkeypatch.setattr(Tuner, "outcomes", outcomes)
    run(params, KEY, folder)
    assert held == {("full", None): False, ("sparsemm", 12): True, ("snapkv", 12): True, ("random", 12): True}
    failed = [row for row in read(folder) if row["outcome"].startswith("failed")]
    assert [row["setting"] for row in failed] == ["sparsemm+knorm"] and "rates no tokens" in failed[0]["outcome"]
    model, _ = tiny(KEY)
    table = ScoreTable.load(root / "artifacts" / "scores" / f"{KEY}.safetensors")
    table = table.with_recipe(recipe_file(folder, "json"))
    assert compressed_cache(model, "auto", budget=16, scores=table, scenario="long").ragged[0].hold_budget
    nothing = params.tune.model_copy(update={"selectors": ("knorm",)})
    with pytest.raises(BudgetError, match="no candidate can hold its budget"):
        run(params.model_copy(update={"tune": nothing}), KEY, folder)


def test_what_is_missing_is_said(made, tmp_path):
    params, root = made
    with pytest.raises(ParamsError, match="no part `tune`"):
        run(params.model_copy(update={"tune": None}), KEY, root)
    with pytest.raises(ParamsError, match="no model"):
        run(params, "nobody", root)
    many = params.model_copy(update={"tune": params.tune.model_copy(update={"samples": 7})})
    with pytest.raises(DataError, match=r"6 records, 7 wanted.*tune\.samples"):
        run(many, KEY, root)
    with pytest.raises(DataError):
        run(params, KEY, tmp_path)
    shutil.copytree(root / "artifacts" / "datasets", tmp_path / "artifacts" / "datasets")
    with pytest.raises(ScoreTableError, match="chase"):
        run(params, KEY, tmp_path)


def test_the_command_shows_the_recipe(tuned, capsys):
    _, root = tuned
    assert main(["--root", str(root), "recipe", "show", KEY]) == 0
    said = capsys.readouterr().out
    recipe = json.loads(recipe_file(root, "json").read_text())
    assert all(choice["why"] in said for choice in recipe["scenarios"].values())
    assert main(["recipe", "show", str(recipe_file(root, "json"))]) == 0
    assert main(["--root", str(root), "recipe", "show", "nobody"]) == 1
    assert f"known: {KEY}" in capsys.readouterr().err
