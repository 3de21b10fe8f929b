"""What a selector costs that reads pages again, and that the choice between near-equal candidates knows it."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from sparsemm.errors import CacheError
from sparsemm.evaluate.rows import Arm, Outcome
from sparsemm.params.tune import TuneParams
from sparsemm.prompts import build_inputs
from sparsemm.recipes import Recipe
from sparsemm.tune.measure import Rereading, Tuner
from sparsemm.tune.search import WORK, Search
from sparsemm.tune.stage import decide, run
from tests.studies.crafted import KEY
from tests.tune.test_decide import rows
from tests.tune.test_stage import copy, read, recipe_file

AGAIN = {"selectors": ("snapkv", "kvzip"), "scenarios": ("known",)}


def with_kvzip(params):
    return params.model_copy(update={"tune": params.tune.model_copy(update=AGAIN)})


def counted(tuner, record, prompt):
    """(S, S + R + N - 1 + R + T): tokens of the prompt, and those that run before an answer begins.

    R tokens ask for the whole page, and transformers answers with N tokens, of which T are the transcript.
    """
    model, processor = tuner.model, tuner.processor
    reading = build_inputs(processor, [[record.image]], [tuner.params.chase.prompt]).to(model.device)
    asked, most = reading["input_ids"].shape[1], tuner.params.evaluate.max_new_tokens
    answer = model.generate(**reading, do_sample=False, max_new_tokens=most)[0, asked:].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    transcript = [token for token in answer if token not in ends]
    own = build_inputs(processor, [[record.image]], [prompt])["input_ids"].shape[1]
    return own, own + asked + len(answer) - 1 + asked + len(transcript)


@pytest.mark.parametrize("scenario", ["known", "later"])
def test_the_work_is_that_of_a_hand_count(made, scenario, tmp_path):
    params, root = made
    tuner = Tuner(params, KEY, copy(root, tmp_path))
    cost = tuner.rereading(scenario)
    questions = tuner._questions("qa", 0, 2)
    each = [
        counted(tuner, *pair) for pair in zip(tuner.records[:2], (q.prompt for q in questions.questions), strict=True)
    ]
    own, whole = map(sum, zip(*each, strict=True))
    assert cost.work == pytest.approx(whole / own, abs=5e-5) and cost.work > 3 and cost.seconds > 0
    assert Tuner(params, KEY, tmp_path).rereading(scenario) == cost  # a resumed run reads nothing again


def test_a_candidate_that_reads_pages_again_costs_more(made, tmp_path, capsys):
    params, root = made
    folder = copy(root, tmp_path)
    run(with_kvzip(params), KEY, folder)
    work = {row["setting"]: float(row[WORK]) for row in read(folder)}
    assert work["snapkv+kvzip"] == work["sparsemm+kvzip"] > 3
    assert {work[name] for name in ("snapkv", "sparsemm", "full", "snapkv+random-visual")} == {1.0}
    said = capsys.readouterr().out
    assert (
        "at most 6 readings of a page" in said and f"run {work['snapkv+kvzip']:.1f} times the prompt's tokens" in said
    )
    assert "answers and at most 6 readings, about" in said
    choice = Recipe.load(recipe_file(folder, "json")).scenarios["known"]
    assert choice.prefill_work == work[choice.name]


def test_without_such_a_candidate_nothing_is_read_again(made, tmp_path, monkeypatch):
    params, root = made
    folder = copy(root, tmp_path)
    monkeypatch.delattr(Tuner, "rereading")
    run(params, KEY, folder)
    with open(recipe_file(folder, "csv"), newline="", encoding="utf-8") as handle:
        assert WORK not in csv.DictReader(handle).fieldnames
    assert "prefill_work" not in recipe_file(folder, "json").read_text(encoding="utf-8")
    assert {one.prefill_work for one in Recipe.load(recipe_file(folder, "json")).scenarios.values()} == {1.0}


def test_a_model_that_cannot_read_again_fails_these_candidates_alone(made, tmp_path, monkeypatch):
    params, root = made

    def refuse(self, scenario):
        raise CacheError("it does not begin as what was read")

    monkeypatch.setattr(Tuner, "_read_again", refuse)
    folder = copy(root, tmp_path)
    run(with_kvzip(params), KEY, folder)
    failed = [row for row in read(folder) if row["outcome"].startswith("failed")]
    assert {row["setting"] for row in failed} == {"snapkv+kvzip", "sparsemm+kvzip"}
    assert all("does not begin" in row["outcome"] for row in failed)
    assert Recipe.load(recipe_file(folder, "json")).scenarios["known"].failed == 2


class Crafted:
    """A tuner whose candidates have these accuracies on its pages, and which notes who was asked."""

    def __init__(self, first, accuracies):
        self.accuracies = accuracies
        self.searched = len(next(iter(accuracies.values())))
        options = {
            "samples": 3 * self.searched // 2,
            "first": first,
            "tasks": ("qa",),
            "budgets": (12,),
            "rhos": (0.1,),
        }
        options["methods"] = tuple(dict.fromkeys(name.partition("+")[0] for name in accuracies))
        options["selectors"] = tuple(dict.fromkeys(name.partition("+")[2] or "snapkv" for name in accuracies))
        self.options = TuneParams.model_validate(options)
        self.usual = {"window": 4, "rho": 0.1, "power": 1.0}
        self.params = SimpleNamespace(evaluate=SimpleNamespace(bootstrap=200, seed=0))
        self.asked, self.pages = [], []

    def generations(self, scenario, candidates, pages):
        return len(candidates) * pages

    def rereading(self, scenario):
        return Rereading(4.25, 0.1)

    def measure(self, scenario, candidates, start, stop):
        self.asked.append([one.name for one in candidates])
        self.pages.append(stop - start)
        pages = {one.name: self.accuracies[one.name][start:stop] for one in candidates}
        return {Arm("qa", "", name, None, 12): Outcome(values, "m") for name, values in pages.items()}


def test_near_equal_candidates_are_chosen_by_their_work():
    level = np.full(12, 0.5)
    ahead = level.copy()
    ahead[:3] += 0.1  # on three pages: not shown
    search = Search(Crafted(12, {"snapkv+kvzip": ahead, "snapkv": level, "snapkv+peak": level - 0.1}), "known")
    assert search.winner().name == "snapkv"
    assert "snapkv+kvzip was ahead of snapkv" in search.passed_over and "4.2 times" in search.passed_over
    search = Search(Crafted(12, {"snapkv+kvzip": level + 0.3, "snapkv": level}), "known")
    assert search.winner().name == "snapkv+kvzip" and search.passed_over == ""
    search = Search(Crafted(12, {"snapkv+kvzip": level, "snapkv": level}), "known")
    assert search.winner().name == "snapkv"  # of equal ones, the one that reads pages once
    search = Search(Crafted(12, {"snapkv+peak": ahead, "snapkv": level}), "known")
    assert search.winner().name == "snapkv+peak"  # where the work is the same, accuracy decides alone


def test_the_best_candidate_that_reads_pages_once_stays_in_every_round():
    ranks = {"snapkv+kvzip": 0.9, "sparsemm+kvzip": 0.8, "sparsemm": 0.6, "snapkv": 0.5}
    tuner = Crafted(4, {name: np.full(8, value) for name, value in ranks.items()})
    assert Search(tuner, "known").winner().name == "snapkv+kvzip"
    assert [sorted(names) for names in tuner.asked[1:]] == [["snapkv+kvzip", "sparsemm"]]
    once = {name: value for name, value in ranks.items() if "kvzip" not in name}
    assert (
        Search(Crafted(4, {name: np.full(16, value) for name, value in once.items()}), "known").winner().name
        == "sparsemm"
    )


def test_the_two_are_compared_on_all_pages_of_the_search():
    level, ahead = np.full(32, 0.5), np.full(32, 0.5)
    ahead[:4] += 0.3
    for values, winner, pages in (
        (ahead, "snapkv", [4, 4, 24]),
        (level + 0.3, "snapkv+kvzip", [4, 4, 24]),
        (level - 0.1, "snapkv", [4, 4]),  # the one that reads pages once leads, so the rounds decide
    ):
        tuner = Crafted(4, {"snapkv+kvzip": values, "snapkv": level, "snapkv+peak": level - 0.2})
        search = Search(tuner, "known")
        needed = search.generations()
        assert search.winner().name == winner and tuner.pages == pages
        asked = sum(len(names) * count for names, count in zip(tuner.asked, pages, strict=True))
        confirmed = 16 * (len(search.against) + 1)
        assert asked + confirmed == needed - (48 if len(pages) == 2 else 0)


def test_a_method_that_reads_pages_again_is_the_last_resort_beside_the_winner():
    evidence = rows("w", 0, 0, 0) + rows("a+kvzip", 1, 1, 1, value=0.9) + rows("b", 1, 1, 1)
    assert decide("w", evidence, ["w", "a+kvzip", "b", "snapkv"])[0] == "a+kvzip"
    assert decide("w", evidence, ["w", "a+kvzip", "b", "snapkv"], ["a+kvzip"])[0] == "b"
    assert decide("w", evidence, ["w", "a+kvzip", "snapkv"], ["a+kvzip"])[0] == "a+kvzip"


def test_a_winner_that_reads_pages_again_gives_way_to_one_that_is_as_accurate():
    evidence = rows("w+kvzip", 1, 1, 1, value=0.6) + rows("a", 1, 1, 1, value=0.6) + rows("b", 1, 1, 1, value=0.5)
    names = ["w+kvzip", "a", "b", "snapkv"]
    name, why = decide("w+kvzip", evidence, names, ["w+kvzip"])
    assert name == "a" and "a is as accurate there and reads pages once" in why
    assert decide("w+kvzip", evidence, names)[0] == "w+kvzip"
    assert decide("w+kvzip", evidence, ["w+kvzip", "b", "snapkv"], ["w+kvzip"])[0] == "w+kvzip"


def test_a_recipe_keeps_what_its_method_costs(made, tmp_path):
    params, root = made
    folder = copy(root, tmp_path)
    run(params, KEY, folder)
    recipe = Recipe.load(recipe_file(folder, "json"))
    costly = recipe.scenarios["known"].model_copy(update={"prefill_work": 4.25})
    changed = recipe.model_copy(update={"scenarios": {"known": costly}})
    changed.save(tmp_path / "costly.json")
    assert Recipe.load(tmp_path / "costly.json") == changed != recipe
