"""What MLflow's page of a version says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparsemm.registry.client import connect, default_store
from sparsemm.registry.description import LONGEST, draw_heads, headlines, with_gate
from sparsemm.registry.gate import Verdict
from sparsemm.registry.logged import metric_name
from sparsemm.registry.promote import promote
from sparsemm.registry.publish import publish


@pytest.mark.parametrize("shape", [(1, 1), (6, 16), (80, 64)])
def test_the_picture_has_a_cell_per_head_and_is_small(tmp_path, shape):
    scores = np.zeros(shape)
    scores[-1, 0] = 0.5
    draw_heads(scores, tmp_path / "heads.png")
    with Image.open(tmp_path / "heads.png") as image:
        cell = (image.width - 1) // shape[1]
        assert (image.width, image.height) == (shape[1] * cell + 1, shape[0] * cell + 1)
        assert image.getpixel((cell // 2, (shape[0] - 1) * cell + cell // 2)) == (8, 48, 107)
        if shape[1] > 1:
            assert image.getpixel((image.width - cell // 2, cell // 2)) == (247, 251, 255)
    assert (tmp_path / "heads.png").stat().st_size < 20_000


def test_no_score_at_all_is_drawn_too(tmp_path):
    draw_heads(np.zeros((2, 2)), tmp_path / "heads.png")
    with Image.open(tmp_path / "heads.png") as image:
        assert len(image.getcolors()) == 2


def test_the_headlines_are_what_was_measured_and_no_more():
    metrics = {
        ("accuracy/qa/sparsemm", 48): 0.7,
        ("accuracy/read/sparsemm", 24): 0.6,
        ("accuracy/read/sparsemm", 48): 0.9,
        ("accuracy/read/full", 0): 0.95,
        ("cost/sparsemm/kept_bytes", 128): 90.0,
        ("cost/sparsemm/kept_bytes", 2048): 25.0,
        ("cost/full/kept_bytes", 2048): 100.0,
    }
    first, second = headlines(metrics, "sparsemm", 48, 24)
    assert "read: 0.600 at 24" in first and "0.950" in first, "the budget of the second sentence"
    assert "read: 0.900 at 48" in headlines(metrics, "sparsemm", 48, 32)[0]
    assert "25.0% of" in second and "at 24 slots" in second and "2048" in second
    with_selector = {
        (metric_name(name.replace("sparsemm", "sparsemm+peak")), step): value for (name, step), value in metrics.items()
    }
    assert headlines(with_selector, "sparsemm+peak", 48, 24) == [first, second]
    assert headlines({}, "sparsemm", 48, 24) == []
    assert headlines({("accuracy/read/sparsemm", 48): 0.9}, "sparsemm", 48, 24) == []


def test_the_page_of_a_version_has_its_numbers_and_the_gates_last_word(local):
    made = local("m")
    done = publish(made.params, "m", made.root)
    client = connect(default_store(made.root))

    def description():
        return client.get_model_version("visual-heads.m", "1").description

    assert "read: 0.900" in description() and "not asked yet" in description()
    assert f"run_uuid={done.run_id}" in description() and "report/index.html" not in description()
    promote(made.params, "m", made.root)
    assert "passed" in description() and "- pass: split-half" in description() and "not asked yet" not in description()
    refused = with_gate(description(), Verdict(False, ("FAIL: " + "x" * LONGEST,)), "1", "today")
    assert refused.count("### Gate") == 1 and "refused on today" in refused and len(refused) == LONGEST
