"""The oracle: selected by the reference answers, at equal slots, and nothing that anybody can name as a method."""

from __future__ import annotations

import pytest
import torch
import yaml

from sparsemm.cache.replay import answer_attention
from sparsemm.errors import ParamsError
from sparsemm.evaluate.rows import Arm
from sparsemm.params import parse_params
from sparsemm.policies import is_method
from sparsemm.studies import read_study
from sparsemm.studies.common.experiment import Experiment
from sparsemm.studies.common.stage import run
from sparsemm.studies.oracle import LATER, ORACLE, SELECTORS, UNIFORM, conclusion, oracle_batches, others
from tests.studies.crafted import KEY, ROOT


def test_every_selector_and_the_oracle_have_equal_slots_and_are_compared(made):
    params, root = made
    run(params, "oracle", KEY, root)
    rows = read_study(root / f"artifacts/studies/oracle/{KEY}.csv", "oracle", KEY)
    for condition, budget in ((UNIFORM, 12), ("rho 0.1", 12), ("rho 0.4", 12), (f"{LATER}, rho 0.4", 24)):
        own = [row for row in rows if row.condition == condition]
        assert {(row.setting, row.budget, row.kept_slots) for row in own} == {
            (name, budget, own[0].kept_slots) for name in (*SELECTORS, ORACLE)
        }
        against = {row.against for row in own if row.setting == ORACLE}
        evenly = condition.partition("rho")[0] + UNIFORM if condition != UNIFORM else ""
        assert against == {"full", *SELECTORS} | ({f"{ORACLE} ({evenly})"} if evenly else set())
    assert "kvzip" in conclusion(rows) and conclusion([]) == ""


@pytest.mark.parametrize("later", [False, True])
def test_the_oracle_sees_the_reference_answer_and_what_comes_behind_the_cut(made, later):
    params, root = made
    experiment = Experiment(params, "oracle", KEY, root)
    questions = experiment.task("qa").questions
    seen = []
    for batch in oracle_batches(experiment, "qa", later):
        assert (batch.cut is not None) == later
        answers = [
            experiment.processor.tokenizer(questions[i].answer, add_special_tokens=False).input_ids for i in batch.index
        ]
        rows = batch.inputs["input_ids"].shape[1] - batch.cut if later else 1
        wanted = answer_attention(experiment.model, batch.inputs, answers, 0, rows)
        others = answer_attention(experiment.model, batch.inputs, [answer[:1] for answer in answers], 0, rows)
        for one, want, other in zip(batch.replay(experiment.model), wanted, others, strict=True):
            assert torch.equal(one, want) and not torch.equal(one, other)
        seen += batch.index
    assert sorted(seen) == [0, 1, 2]


def test_it_is_no_method():
    assert not is_method(ORACLE) and not is_method(f"snapkv+{ORACLE}")


def test_what_is_compared_with_what():
    arm = Arm("qa", f"{LATER}, rho 0.1", "kvzip", None, 24)
    full = Arm("qa", "", "full")
    assert others(arm) == [full, arm._replace(setting="snapkv"), arm._replace(setting="blend-echo")]
    assert others(arm._replace(setting="snapkv")) == [full] and others(full) == []
    assert others(arm._replace(setting=ORACLE))[-1] == arm._replace(setting=ORACLE, condition=f"{LATER}, {UNIFORM}")


def test_a_budget_below_the_window_is_refused():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["studies"]["measured"]["oracle"] |= {"later": [2]}
    with pytest.raises(ParamsError, match=r"budget 2 of later is below allocate\.window 4"):
        parse_params(yaml.safe_dump(raw))
