"""Every number that prose states as a result is computed from its artifact here, and stands in the document like that.

Tables between markers are made by `python -m benchmarks.front_page` and `python -m benchmarks.tables`, and have tests
of their own. In the documents of `COMPLETE` no other number may stand in prose, but those of settings.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import controls_tables, expectations
from sparsemm.evaluate.rows import FULL
from sparsemm.files import sha256_file
from sparsemm.params import load_params
from sparsemm.statistics import BETTER, WORSE
from sparsemm.studies import StudyRow, read_study
from sparsemm.studies.common.heads import LAYERS, TOP
from sparsemm.studies.oracle import ORACLE
from sparsemm.studies.retrieval import BEFORE, RETRIEVAL
from sparsemm.tables import read_rows
from sparsemm.training.card import STYLES
from tests.repository import ROOT

LLM, QWEN, VICUNA = "smollm2-llava-next", "tiny-qwen2-vl", "tiny-llava-next-vicuna"
NUMBERS = {
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    7: "seven",
    8: "eight",
    9: "nine",
    10: "ten",
}  # counts that prose writes as words
SHARES = {
    "an eighth": 1 / 8, "a fifth": 1 / 5, "a quarter": 1 / 4, "a third": 1 / 3, "half": 1 / 2,
    "three quarters": 3 / 4, "nearly all": 0.96,
}  # fmt: skip


def load(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def rows(path: str) -> list[dict[str, str]]:
    with open(ROOT / path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def study(name: str, model: str = LLM) -> list[StudyRow]:
    return read_study(ROOT / "artifacts" / "studies" / name / f"{model}.csv", name, model)


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}"


def ends(low: float, high: float) -> str:
    return f"[{percent(low)}, {percent(high)}]"


def span(values: list[float]) -> str:
    return f"{percent(min(values))} to {percent(max(values))}"


def near(value: float) -> str:
    """The words that say a share: the nearest, which is off by less than 4 points."""
    word = min(SHARES, key=lambda one: abs(SHARES[one] - value))
    assert abs(SHARES[word] - value) < 0.04, f"{value} is none of {SHARES}"
    return word


def sparsity() -> Iterator[str]:
    shares = load(f"artifacts/scores/{LLM}.json")["top_share"]
    heads = rows(f"artifacts/scores/{LLM}.csv")
    layers = [int(row["layer"]) for row in heads[:14]]
    yield f": {len(heads)} heads, of which few look."
    yield f"The best 5 % of its heads hold {percent(shares['5%'])} % of the visual score"
    yield f"the best 10 % hold {percent(shares['10%'])} %"
    yield f"{sum(20 <= layer <= 23 for layer in layers)} of the 14 best are in layers 20 to 23."


def reading() -> Iterator[str]:
    read = [row for row in rows(f"artifacts/evaluate/{LLM}.csv") if row["task"] == "read"]
    cells = {(row["method"], row["budget"]): row for row in read}
    published, snapkv, random = (float(cells[name, "48"]["value"]) for name in ("sparsemm", "snapkv", "random"))
    assert percent(published) == percent(float(cells["full", ""]["value"]))
    yield f"With 48 of {float(cells['full', '']['kept_slots']):.0f} slots the published method reads as many words"
    yield f"SnapKV reads {near(snapkv)} of them, and the same budgets given to random heads {near(random)}."


def saving() -> Iterator[str]:
    measured = load(f"artifacts/benchmarks/saving-{LLM}.json")
    separate, shared, together = (measured[f"{way}_seconds"] for way in ("separate", "shared", "together"))
    yield f"On {NUMBERS[measured['rows']]} pages of `{LLM}` its {measured['variants']} methods and budgets"
    yield f"take {separate / together:.1f} times as long one after the other, each from a prefill of its own;"
    yield f"from a shared prefill they still take {shared / together:.1f} times as long."


def exponents() -> Iterator[str]:
    chosen = [
        choice["options"].get("power", 1.0)
        for key in (LLM, QWEN, VICUNA)
        for choice in load(f"artifacts/recipes/{key}.json")["scenarios"].values()
    ]
    other = sum(power != 1.0 for power in chosen)
    yield f"{NUMBERS[other].capitalize()} of these {NUMBERS[len(chosen)]} methods have another exponent than 1"


def selection() -> Iterator[str]:
    cells = {(row.task, row.condition, row.budget, row.setting): row.value for row in study("oracle")}
    full = cells["read", "", None, FULL]
    even, ours = ([cells["read", split, slots, ORACLE] for slots in (12, 24)] for split in ("uniform", "rho 0.1"))
    yield f"the oracle reads {near(even[0])} of the words at 12 slots and {near(even[1])} of them at 24;"
    yield f"with those of `sparsemm` it reads {percent(ours[0])} and {percent(ours[1])} %"
    published, blend, kvzip = (cells["read", "rho 0.1", 12, name] for name in ("snapkv", "blend-echo", "kvzip"))
    yield f"Of the {percent(full - published)} points that the published method loses at 12 slots"
    won = [percent(value - published) for value in (ours[0], blend, kvzip)]
    yield f"the oracle wins back {won[0]}, `blend-echo` {won[1]}, and `kvzip` {won[2]}"
    yield f"What is left of the loss at 12 slots, {percent(full - ours[0])} points"
    later = [near(cells["qa", "question later, uniform", 24, name]) for name in ("snapkv", "kvzip", ORACLE)]
    yield f"selector answers {later[0]}, `kvzip` {later[1]}, the oracle, which knows the question, {later[2]}."
    gain = even[1] - cells["read", "uniform", 24, "snapkv"]
    yield f"by {percent(gain)} points over the published selector at 24 slots"
    read = [row for row in study("oracle", VICUNA) if row.task == "read"]
    vicuna = {(row.condition, row.budget, row.setting): row.value for row in read}
    yield f"even the oracle reads {near(vicuna['rho 0.1', 24, ORACLE])} of the words at 24 slots"
    assert vicuna["uniform", 24, ORACLE] > 0.5, "and with uniform budgets most of them"


def retrieval() -> Iterator[str]:
    cells = {(row.condition, row.setting): row.value for row in study("retrieval") if row.task == "scores"}
    shared = [NUMBERS[round(14 * cells["top 5 % overlap", name])] for name in (RETRIEVAL, BEFORE)]
    yield f"{shared[0].capitalize()} of the best 14 heads of the tuned model are the same as the visual ones"
    yield f"and {shared[1]} of those of the language model before it was tuned"
    ranks = [f"{cells['rank correlation', name]:.2f}".lstrip("0") for name in (RETRIEVAL, BEFORE)]
    yield f"(rank correlation of all heads {ranks[0]} and {ranks[1]}, `artifacts/studies/retrieval/{LLM}.csv`)"


def words_read(run: dict[str, Any]) -> list[str]:
    """What a run of the controls reads with one column and with two."""
    held = [run["held_out"][style] for style in STYLES]
    return [f"{percent(one['word_accuracy'])} % {ends(*one['word_accuracy_interval'])}" for one in held]


def smolvlm() -> Iterator[str]:
    run = load("artifacts/smolvlm/smolvlm.json")
    assert run["about"]["steps"] == run["about"]["of_steps"] == 900
    one, two = words_read(run)
    yield f"It reads {one} of the words with one column and {two} with two"
    yield f"its best 5 % of the heads hold {percent(run['scores']['top_share']['5%'])} % of the score"
    less, low, high = (-value for value in run["masking"][controls_tables.DIFFERENCE])
    yield f"it reads {percent(less)} points less {ends(high, low)} than without as many random ones of the same layers"
    alike = read_rows(ROOT / "artifacts" / "smolvlm" / "agreement.csv", controls_tables.Agreement)
    shared, most, ranks = (row for row in alike if {row.one, row.other} == {LLM, "smolvlm"})
    yield f"it shares {shared.value:.0f} of its best 14 heads with the committed checkpoint"
    yield f"and {most.value:.0f} of its best 27, where chance is {shared.chance:.1f} and {most.chance:.1f}"
    yield f"rank correlation of all heads is {ranks.value:.2f} [{ranks.ci_low:.2f}, {ranks.ci_high:.2f}]"
    assert controls_tables.property_of_the_model([shared, most, ranks], [run]) == "yes"


def controls() -> Iterator[str]:
    names = ("seed-2", "seed-3", "other-tower", "no-prose", "full-tuning")
    runs = {name: load(f"artifacts/controls/{name}.json") for name in names}
    assert {run["about"]["steps"] for run in runs.values()} == {300}
    yield f"{NUMBERS[len(runs)].capitalize()} runs were trained, for their 300 steps"
    one, two = ([run["held_out"][style]["word_accuracy"] for run in runs.values()] for style in STYLES)
    yield f"they read {span(one)} % of the words with one column, and {span(two)} % with two."
    reading = {LLM, *(name for name, run in runs.items() if controls_tables.reads(run))}
    assert reading == {LLM, *names} - {"other-tower"}
    pairs: dict[frozenset[str], list[controls_tables.Agreement]] = {}
    for row in read_rows(ROOT / "artifacts" / "controls" / "agreement.csv", controls_tables.Agreement):
        pairs.setdefault(frozenset((row.one, row.other)), []).append(row)
    judged = {pair: controls_tables.property_of_the_model(rows, []) for pair, rows in pairs.items() if pair <= reading}
    met = [pair for pair, verdict in judged.items() if verdict == "yes"]
    yield f"*The registered rule is met by {len(met)} of {len(judged)} pairs, so it says neither.*"
    least = min(pairs[pair][0].value for pair in judged)
    yield f"In all {len(judged)}, at least {least:.0f} of the best 14 heads are the same"
    failing = judged.keys() - met
    assert all("seed-3" in pair and judged[pair].startswith("neither: rank") for pair in failing)
    ranks = [pairs[pair][2].value for pair in failing]
    yield f"in the pairs with `seed-3`: {min(ranks):.2f} to {max(ranks):.2f}, where the rule asks for 0.7."
    shared = [rows[0].value for pair, rows in pairs.items() if "other-tower" in pair and pair <= {*runs, LLM}]
    assert len(shared) == len(runs)
    yield f"shares at least {min(shared):.0f} of its best 14 heads with every other run"
    assert max(runs, key=lambda name: runs[name]["held_out"]["one column"]["word_accuracy"]) == "no-prose"
    same = pairs[frozenset((LLM, "no-prose"))][0].value
    yield f"shares {same:.0f} of its best 14 heads with the committed checkpoint"
    same = pairs[frozenset((LLM, "full-tuning"))][0].value
    yield f"`full-tuning` shares {same:.0f} of its best 14 heads with the committed checkpoint."
    prose = [load(f"artifacts/controls/{name}.json")["prose"] for name in ("no-prose", controls_tables.BEFORE)]
    yield f"its loss on prose is {prose[0]:.3f} nats per character; before any tuning it was {prose[1]:.3f}."
    held = [run["scores"]["top_share"]["5%"] for run in runs.values()]
    yield f"the best 5 % of the heads hold {span(held)} % of them."
    assert [name for name, run in runs.items() if run["masking"][controls_tables.DIFFERENCE][2] >= 0] == [
        "seed-2",
        "full-tuning",
    ]
    whole, top, random = (
        span([run["masking"][arm][0] for run in runs.values()]) for arm in ("none", TOP, "random, same layers")
    )
    yield f"With all heads on the runs read {whole} % of the words of 24 pages of both kinds"
    yield f"they read {top} %, without random heads of the same layers {random} %."
    blind = load("artifacts/controls/random-tower.json")
    differing = {name for name, value in blind["about"].items() if value != runs["seed-2"]["about"][name]}
    assert differing == {"tower", "updates_sha256"}
    one, two = words_read(blind)
    yield f"`random-tower`, trained later, reads {one} of the words with one column and {two} with two;"
    one, two = words_read(runs["seed-2"])
    yield f"`seed-2`, which differs in nothing but a tower that had seen pages before, reads {one} and {two}."
    scored = {
        name: controls_tables.curve_table(ROOT / "artifacts" / "controls" / f"{name}.csv").scores for name in names
    }
    assert all((own == 0).mean() > 0.5 for own in scored.values()), "half of the heads or more have no score"


def small() -> Iterator[str]:
    paths = "artifacts/small-qwen2-vl/scores.json", f"artifacts/scores/{QWEN}.json"
    shares = [percent(load(path)["top_share"]["5%"], 1) for path in paths]
    yield f"no sparser, {shares[0]} % of the score in the top 5 % ({shares[1]} % on `{QWEN}`)"
    masked = {
        row["level"]: [-float(row[name]) for name in ("diff", "diff_ci_high", "diff_ci_low")]
        for row in rows("artifacts/small-qwen2-vl/masking.csv")
        if (row["task"], row["condition"], row["setting"], row["against"]) == ("read", "output zeroed", TOP, LAYERS)
    }
    (tenth, *of_tenth), (third, *of_third) = masked["0.1"], masked["0.3"]
    tenth, of_tenth = percent(tenth), ends(*of_tenth)
    yield f"costs {tenth} points of words read more than as many random ones of the same layers {of_tenth}"
    yield f"the best 30 % {percent(third)} points more {ends(*of_third)}."
    lost = {  # what sparsemm has more than a method
        (row["task"], row["method"], row["budget"]): [
            -float(row[name]) for name in ("diff_vs_sparsemm", "diff_ci_high", "diff_ci_low")
        ]
        for row in rows("artifacts/small-qwen2-vl/evaluate.csv")
        if row["diff_vs_sparsemm"]
    }
    of_snapkv = [lost["read", "snapkv", slots] for slots in ("12", "24", "48")]
    more = [f"{percent(value)} {ends(*interval)}" for value, *interval in of_snapkv]
    yield f"at 12, 24 and 48 slots {more[0]}, {more[1]} and {more[2]} points more than SnapKV."
    snapkv, adakv = ([-value for value in lost["qa", name, "12"]] for name in ("snapkv", "adakv"))
    assert percent(snapkv[0]) == percent(adakv[0]), "one number stands for both"
    yield f"by {percent(snapkv[0])} points than SnapKV {ends(*snapkv[:0:-1])} and AdaKV {ends(*adakv[:0:-1])}."


def protocol() -> Iterator[str]:
    def both(model: str) -> dict[tuple[str, float | None], float]:
        measured = expectations.read(model)
        assert measured is not None
        return {(row.setting, row.level): row.value for row in measured.rows}

    llm, qwen, vicuna = both(LLM), both(QWEN), both(VICUNA)
    ours = [value for (name, share), value in llm.items() if share == 0.2 and name.split("+")[0] == "sparsemm"]
    assert len(ours) == 4
    yield f"with the budgets of `sparsemm` each of the four has {percent(min(ours))} % or more."
    even = [value for (name, share), value in llm.items() if share == 0.2 and name.split("+")[0] == "snapkv"]
    assert max(even) < 0.6
    yield "with uniform budgets no selector reaches 60 % of the full cache's accuracy at 20 % of the prompt"
    pretrained = expectations.read(LLM)
    assert pretrained is not None

    def of(method: str, share: float) -> str:
        row = next(row for row in pretrained.rows if (row.setting, row.level) == (method, share))
        assert row.ci_low is not None and row.ci_high is not None
        return f"{percent(row.value)} % {ends(row.ci_low, row.ci_high)}"

    whole = of("duo", 0.2)
    yield f"`duo`, which gives the heads with the highest visual scores the whole prompt, has {whole} there."
    late = [f"`{one}` ({of(f'snapkv+{one}', 0.4)}" for one in ("kvzip", "blend-echo", "echo")]
    yield f"uniform budgets with {late[0]}), {late[1]}) and {late[2]}) too."
    against = [row for row in pretrained.rows if row.against == expectations.BASELINE]
    fewer, layers = ("look-m", "elasticcache", "fastv"), ("vl-cache", "meda", "pyramidkv")
    assert BETTER not in [row.verdict for row in against if row.setting in (*fewer, *layers)]
    assert all(WORSE in [row.verdict for row in against if row.setting == name] for name in fewer)
    refused = [one.place for one in pretrained.refused if one.setting == "downsampled"]
    assert set(refused) == set(map(expectations.place, against)), "a smaller image fits no share"
    yield "Merging and token reduction (`look-m`, `elasticcache`, `fastv`) are worse than uniform SnapKV"
    blend = percent(qwen["sparsemm+blend-echo", 0.4])
    yield f"`sparsemm+blend-echo` has {blend} % of the full cache's accuracy at 40 %"
    zips = [percent(vicuna[name, 0.2]) for name in ("sparsemm+kvzip", "snapkv+kvzip")]
    yield f"(with `kvzip` {zips[0]} against {zips[1]} %)"
    blends = [percent(vicuna[name, 0.4]) for name in ("sparsemm+blend-echo", "snapkv+blend-echo")]
    yield f"at 40 % the two are {blends[0]} and {blends[1]} % with `blend-echo`."
    yield f": {zips[1]} % at 20 %, {percent(vicuna['snapkv+kvzip', 0.4])} % at 40 %."


def speed() -> Iterator[str]:
    def ratios(length: str) -> str:
        cells = [
            float(row["decode_ratio_to_full"])
            for model in (LLM, QWEN, VICUNA)
            for row in rows(f"artifacts/profile/{model}.csv")
            if (row["method"], row["prompt_length"], row["batch_size"]) == ("sparsemm", length, "1")
        ]
        return f"{min(cells):.2f} to {max(cells):.2f}"

    yield f"{ratios('128')} on the three models after a prompt of 128 tokens, {ratios('2048')} after 2,048"
    far = [row for row in load("artifacts/benchmarks/lengths-cpu.json")["rows"] if row["prompt_length"] == 32768]
    token = {row["method"]: row["decode_ms_per_token"] for row in far}
    yield f"and {token['sparsemm'] / token['transformers']:.2f} on `{QWEN}` after 32,768"


def pretrained() -> Iterator[str]:
    card = load(f"data/checkpoints/{LLM}/card.json")
    kinds = [card["held_out"][style] for style in STYLES]

    def of(kind: dict[str, Any], name: str) -> list[str]:
        return [percent(value, 1) for value in (kind[name], *kind[f"{name}_interval"])]

    one, two = (of(kind, "word_accuracy") for kind in kinds)
    yield f"On {card['held_out']['pages_per_style']} held-out pages of each kind"
    yield f"it reads {one[0]} % of the words with one column (95 % interval {one[1]} to {one[2]})"
    yield f"and {two[0]} % with two ({two[1]} to {two[2]})"
    one, two = (of(kind, "exact_match") for kind in kinds)
    yield f"answers {one[0]} % ({one[1]} to {one[2]}) and {two[0]} % ({two[1]} to {two[2]}) of the questions exactly."
    prose, text = card["prose"], card["architecture"]["text"]
    losses = [f"{prose[f'held_out_nats_per_character{when}']:.3f}" for when in ("_before", "")]
    yield f"Its loss on {prose['held_out_windows']} windows of held-out prose fell from {losses[0]} to {losses[1]} nats"
    yield f"It is one training run of {card['training']['steps']} steps"
    long = load(f"artifacts/benchmarks/unseen-{LLM}.json")["long_pages"]["long, qa"]
    assert (long["n"], set(map(tuple, long["accuracy"].values()))) == (6, {(1.0, 0.75, 1.0)})
    yield f"On six pages of {long['prompt_tokens'] // 100 * 100:,} tokens it finds the answer to every question"
    vocabulary = load(f"data/checkpoints/{LLM}/config.json")["text_config"]["vocab_size"]
    yield f"because the vocabulary has {vocabulary:,} entries."
    yield f"({text['layers']} layers of {text['query_heads']} query and {text['kv_heads']} KV heads)"


def checkpoints() -> Iterator[str]:
    def cell(kinds: list[dict[str, Any]], name: str) -> str:
        values = [[percent(value, 1) for value in (kind[name], *kind[f"{name}_interval"])] for kind in kinds]
        return " / ".join(f"{value}% ({low}-{high})" for value, low, high in values)

    for path in sorted((ROOT / "data" / "checkpoints").glob("*/card.json")):
        held_out = load(str(path.relative_to(ROOT)))["held_out"]
        kinds = [held_out[style] for style in STYLES]
        yield f"| {cell(kinds, 'word_accuracy')} | {cell(kinds, 'exact_match')} |"
    minutes = load("data/checkpoints/small-qwen2-vl/card.json")["training"]["seconds"] / 60
    yield f"in {minutes:.0f} minutes of two shared CPU cores"


def first_steps() -> dict[str, tuple[str, int]]:
    """Step -> the minutes that it takes, and GB."""
    rows = load("artifacts/benchmarks/first-steps.json")["rows"]
    minutes = {row["step"]: max(1, round(row["seconds"] / 60)) for row in rows}
    words = {name: f"{count} minute" + ("s" if count > 1 else "") for name, count in minutes.items()}
    return {row["step"]: (words[row["step"]], round(row["bytes"] / 1e9)) for row in rows}


def install() -> Iterator[str]:
    steps = first_steps()
    (setup, everything), (_, library), (demo, _) = (steps[name] for name in ("setup", "install", "demo"))
    yield f"the library, and pages from PDF files: {library} GB, less with a CPU's torch"
    yield f"or everything: {everything} GB, {setup} of two idle cores after the download"
    yield f"all stages on a pretrained small model: {demo}"


def install_library() -> Iterator[str]:
    yield f"takes a torch for CUDA, and the environment has {first_steps()['install'][1]} GB."


def make_report() -> Iterator[str]:
    minutes, size = first_steps()["setup"]
    yield f"make setup && . .venv/bin/activate # {size} GB, {minutes} after the download"


def continued() -> Iterator[str]:
    run = load("artifacts/real-pages/real-pages.json")
    yield f"went on for {run['about']['steps']} steps of {run['about']['batch_size']} pages each"
    files = f"artifacts/benchmarks/unseen-{LLM}.json", "artifacts/benchmarks/unseen-real-pages.json"
    before, after = (load(path)["real_pages"] for path in files)
    assert before["documents"] == after["documents"]
    drawn, own = (
        [percent(part[shown]["word_accuracy"][0]) for part in (after, before)]
        for shown in ("its words in our print", "a page of our own")
    )
    yield f"real words in our print, {drawn[0]} % of them instead of {drawn[1]} %"
    yield f"Of its own pages it reads {own[0]} % instead of {own[1]} %, with intervals that overlap."
    low, high = before["a page of our own"]["word_accuracy"][1], after["a page of our own"]["word_accuracy"][2]
    assert low < high
    assert all(after[shown]["word_accuracy"][0] < 0.01 for shown in ("whole page", "part at training size"))
    alike = read_rows(ROOT / "artifacts" / "real-pages" / "agreement.csv", controls_tables.Agreement)
    (shared,) = [
        row.value for row in alike if (row.one, row.other, row.metric) == (LLM, "real-pages", "best 14 shared")
    ]
    assert shared == 13
    yield "Its best 14 heads are those of the committed checkpoint but for one."
    less, low, high = (-value for value in run["masking"][controls_tables.DIFFERENCE])
    yield f"it reads {percent(less)} points less of the words {ends(high, low)} than without random heads"


def recipe_time() -> Iterator[str]:
    measured = load("artifacts/benchmarks/recipe-time.json")
    stages, models = {row["stage"] for row in measured["rows"]}, load_params(ROOT / "params.yaml").models
    assert {f"{stage}{key}" for key in models for stage in ("tune@", "study@protocol-")} < stages
    assert measured["cores"] == 2
    yield f"the recipes of the {NUMBERS[len(models)]} models and their tables of all methods (the study `protocol`)"
    yield f"take {measured['seconds'] / 60:.0f} minutes of two CPU cores, from data sets to proof"


def picture() -> Iterator[str]:
    drawn = load("artifacts/benchmarks/method.json")
    assert drawn["picture_sha256"] == sha256_file(ROOT / "docs" / "method.png"), "drawn without its texts"
    looks, ours, snapkv = drawn["texts"]
    word = re.findall("“(.+?):?”", looks)[0]
    yield f'*Left: where the best visual head of `{LLM}` looks just before the model says "{word}".'
    (slots, kept, total), (_, kept_by_snapkv, _) = (map(int, re.findall(r"\d+", text)) for text in (ours, snapkv))
    assert kept == total
    yield f"Middle: at {slots} slots per head SparseMM keeps all {total} visual tokens for this head."
    yield f"Right: SnapKV keeps {kept_by_snapkv}.*"


def chase() -> Iterator[str]:
    models = (QWEN, VICUNA, "tiny-llava-next-mistral")
    floats = [load(f"artifacts/benchmarks/chase-{name}-cpu.json")["ratios"] for name in models]
    limits = sorted(round(one["loop_over_arithmetic"]) for one in floats)
    assert all(one["loop_over_chase"] < 30 for one in floats)
    halves = [load(f"artifacts/benchmarks/chase-{name}-bf16-cpu.json")["ratios"] for name in models]
    assert all(one["loop_over_chase"] > 30 for one in halves)
    yield "and the chase is more than 30 times as fast."
    yield f"In fp32 the limit is {limits[0]} to {limits[-1]} in the table, and the chase is less than 30 times as fast"


def studies() -> Iterator[str]:
    simulated = load("artifacts/benchmarks/interval-coverage.json")["rows"]
    plain, ours = ([row[name] for row in simulated] for name in ("plain", "evaluation"))
    pages = [row["pages"] for row in simulated]
    yield f"In {len(simulated)} simulated comparisons of exact matches on {min(pages)} to {max(pages)} pages"
    yield f"contain the truth in {percent(min(plain))} to {percent(max(plain))} % of the trials"
    yield f"intervals in {percent(min(ours))} to {percent(max(ours))} % (`python -m benchmarks.interval_coverage`)"


CLAIMS: dict[str, tuple[Callable[[], Iterator[str]], ...]] = {
    "README.md": (picture, install),
    "docs/tutorials/compress.md": (install_library,),
    "docs/tutorials/report.md": (make_report,),
    "docs/results.md": (sparsity, reading, selection, retrieval, controls, smolvlm, exponents, small, protocol, speed),
    "docs/pretrained.md": (pretrained, continued),
    "docs/checkpoints.md": (checkpoints,),
    "docs/chase.md": (chase,),
    "docs/evaluate.md": (saving,),
    "docs/recipes.md": (recipe_time,),
    "docs/studies.md": (studies,),
}
COMPLETE = ("README.md", "docs/results.md", "docs/pretrained.md")


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("document", "claims"), [(document, one) for document, several in CLAIMS.items() for one in several]
)
def test_prose_says_what_the_artifacts_say(document, claims):
    text = flat((ROOT / document).read_text(encoding="utf-8"))
    missing = [claim for claim in claims() if claim not in text]
    assert not missing, f"{document} does not say this, which is what its artifact says now: {missing}"


NOT_PROSE = (  # or has a test of its own
    r"<!-- (?!end)[^>]*-->.*?<!-- end -->",  # made by a command
    r"^```.*?^```",  # snippets and commands: tests/test_tutorials.py
    r"^\d+ (?:November|December) 2026, [^\n]*\n(?:[^\n]+\n)?\n(?:(?:- |  )[^\n]*\n)+",  # what was registered beforehand
    r"^\|.*?\n\n",  # tables of names, and of published numbers
)
SETTINGS = (  # what a sentence is about, not what came out
    r"`[^`]*`",
    r"\]\([^)]*\)",  # targets of links
    r"\b[A-Za-z][\w.-]*\d[\w.-]*",  # names with a number
    r"\b(?:arXiv|Python|Gemma|Mistral|rho) \d[\d.]*|(?:7B )?model: 55 and 77 %|\b7B\b",  # the paper's model
    r"(?<=\s)\d\.(?= )",  # items of a list
    r"95 % (?=interval|bootstrap)|1 / perplexity",
    r"(?:(?:and |at |, )*\d+ )*(?:of \d+ )?slots|[Aa]t 12\b|[Aa]t 24\b|After 512 tokens",
    r"(?:best|top) \d+ %",
    r"(?:[Aa]t|from|below|or) \d+ (?:%|and)",  # of a prompt
    r"\d+ (?:held-out |calibration )?pages|\d+(?:st|nd|rd|th) (?:to|page)|first \d+|the 48 of the tables",
    r"\d+ dpi|\d+ bits|, 16\)|12 x 12 patches|8,192 positions",
)


def unclaimed(document: str) -> str:
    """The prose of a document without what its artifacts say, and without names and settings."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    text = flat(text)
    for claim in (claim for claims in CLAIMS.get(document, ()) for claim in claims()):
        text = text.replace(claim, "")
    for pattern in SETTINGS:
        text = re.sub(pattern, "", text)
    return text


@pytest.mark.parametrize("document", COMPLETE)
def test_no_other_number_stands_in_prose(document):
    left = re.findall(r".{0,60}\d.{0,40}", unclaimed(document))
    assert not left, f"numbers in {document} that no artifact is asked for: say where they come from in CLAIMS"


# Documents about how things work are full of numbers that are settings. What looks measured has a unit.
MEASURED = re.compile(r".{0,60}\d(?: ?%| (?:times|minutes?|seconds?|hours?|m?s|us|points|nats|[GMKT]i?B)\b).{0,30}")
NOT_MEASURED = (  # settings, limits and arithmetic
    r"under 90 seconds on two idle cores|heartbeat every 30 seconds|silent for 90 seconds|default of 180 seconds",
    r"1 MiB\) at a time|less than 1 GiB|up to 512 MiB|a 5 GB shard|8 layers of 16 heads, 10 MB|these are 112 MiB",
    r"at most (?:5 % padding|10 % more memory)|steps of 3 %|must be 5 % faster|weights are 15 GB|answer in 40 GiB",
    r"95 ?%(?= (?:percentile|intervals))|does not reach 95 %|best 5 nor",
    r"numbers gets 3\.2 times|of 128 gets 1\.9 times",  # from the bytes of a row
    r"(?:\|[^|]*){4}\| not yet \|",  # goals for a GPU
)
OTHERS = sorted(
    {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} - set(COMPLETE)
    | {"CONTRIBUTING.md", "examples/service/README.md"}
)


@pytest.mark.parametrize("document", OTHERS)
def test_nothing_that_looks_measured_stands_in_other_documents(document):
    text = unclaimed(document)
    for pattern in NOT_MEASURED:
        text = re.sub(pattern, "", text)
    left = MEASURED.findall(text)
    assert not left, f"{document} has what looks measured and is in no artifact: say where it comes from in CLAIMS"
