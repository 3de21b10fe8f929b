"""The profile at lengths that params.yaml does not name."""

from __future__ import annotations

import pytest

from benchmarks import lengths
from sparsemm.errors import DataError
from sparsemm.profiling import clock
from sparsemm.profiling.table import COLUMNS
from tests.studies.crafted import KEY, begin


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two methods, a turn each."""
    params, root = begin(tmp_path_factory.mktemp("lengths"))
    update = {"methods": ("full", "sparsemm"), "new_tokens": 2, "repetitions": 1}
    return params.model_copy(update={"profile": params.profile.model_copy(update=update)}), root


def test_rows_of_every_length_and_ratios_of_the_longest(begun, monkeypatch):
    monkeypatch.setattr(clock, "COPIED", dict.fromkeys(clock.COPIED, 1 << 16))
    params, root = begun
    found = lengths.run(params, KEY, (300, 700), root)
    cases = [(row["prompt_length"], row["method"]) for row in found["rows"]]
    assert cases == [(n, method) for n in (300, 700) for method in ("transformers", "full", "sparsemm")]
    assert all(list(row) == COLUMNS for row in found["rows"])
    full, _, kept = found["rows"][3:]
    ratios = found["ratios"]["sparsemm"]
    assert ratios["cache_bytes"] == pytest.approx(kept["slab_bytes"] / full["slab_bytes"], abs=1e-4)
    assert ratios["decode"] == kept["decode_ratio_to_full"] and 0 < ratios["peak_bytes"] < 1.1
    assert 1 - ratios["cache_bytes"] > 0.5 and found["model"] == KEY and found["device"]


def test_a_prompt_too_short_for_the_page_is_refused(begun):
    params, root = begun
    with pytest.raises(DataError, match="the image alone"):
        lengths.run(params, KEY, (4,), root)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert lengths.main(["one", "--root", str(tmp_path)]) == 1
    assert "params.yaml" in capsys.readouterr().err
