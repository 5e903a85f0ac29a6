"""The report of a made-up search evaluation, with texts that try to break out of the page."""

import base64
import hashlib
import json
import random
import re
import shlex
import string
import zlib
from html.parser import HTMLParser
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from report_results import ATTACK, OBJECTIVES, OPTIONAL, made_up_results, write

from vpo_plugin.openrlhf.log import log_step, training_curve
from vpo_plugin.report import page as report_page
from vpo_plugin.report.style import KNOWN, styles
from vpo_plugin.report.tables import format_table
from vpo_plugin.report.write import plain as as_json


@pytest.fixture(scope="module")
def results():
    return made_up_results()


@pytest.fixture(scope="module")
def plain(results):
    return as_json(results)


class Page(HTMLParser):
    """The elements and the text of a page, and a check that its elements nest."""

    VOID = frozenset(["meta", "path", "use", "br", "img", "link", "wbr"])

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text += data


def test_the_files_of_a_report(results, tmp_path):
    write(results, tmp_path / "new" / "folder")
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"report.json", "report.html", "best_at_k.png"}
    assert sum(path.stat().st_size for path in files.values()) < 1_000_000
    picture = matplotlib.image.imread(files["best_at_k.png"])
    assert picture.shape[0] >= 800 and picture.shape[1] >= 1200 and picture.std() > 0.05
    stored = json.loads(files["report.json"].read_text())
    assert stored["policies"][2]["best_at_k"] == results["policies"][2]["best_at_k"]
    assert stored["policies"][0]["objective_means"]["gold"] == results["policies"][0]["objective_means"]["gold"]
    assert stored["training"][0]["steps"][0]["group_diversity"] is None  # NaN is not JSON


def test_the_page_is_self_contained_and_says_what_was_found(results, tmp_path):
    write(results, tmp_path)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe"}
        references = [value for name, value in attributes.items() if name in {"src", "href", "xlink:href"}]
        assert all(reference.startswith("#") for reference in references)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import", html)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, flags=re.DOTALL)
    data = ' type="application/json" id="data"'
    assert [kind for kind, _ in scripts] == [*[' type="application/octet-stream" data-block'] * 3, data, ""]
    digest = base64.b64encode(hashlib.sha256(scripts[-1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html  # and no other script runs
    assert "innerHTML" not in html
    best = [f"{policy['best_at_k']['mean'][-1]:.3f}" for policy in results["policies"]]
    headline = page.text.index("With 30 candidates per prompt")
    assert all(number in page.text[headline : headline + 200] for number in best)
    assert (
        headline
        < page.text.index("Search evaluation")
        < page.text.rindex("All measures")
        < page.text.index("make demo")
    )
    for words in (
        "Mazes & more",
        "openrlhf 0.11.2",
        "2 CPU cores",
        "vpo is ahead",
        "vpo: 20 steps in 1.0 minutes",
        "Means over 16 held-out prompts",
        "worth 75 % of the best possible reward",
        "1,234",
        "Orchestration added 12 s to the 457 s",
    ):
        assert words in page.text


def blocks(folder) -> list[dict[str, Any]]:
    """The prompts of a page, unpacked."""
    packed = re.findall(r"data-block>(.*?)</script>", (folder / "report.html").read_text(), flags=re.DOTALL)
    return [json.loads(zlib.decompress(base64.b64decode(block))) for block in packed]


def test_the_texts_of_models_are_packed(results, tmp_path):
    write(results, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert ATTACK not in html and "window.attacked" not in re.sub(r'id="data">.*?</script>', "", html, flags=re.DOTALL)
    first, *_ = blocks(tmp_path)
    texts = [candidate["text"] for policy in first["policies"] for candidate in policy["candidates"]]
    assert first["prompt"] == first["label"] == ATTACK and ATTACK in texts


def test_the_numbers_of_the_page_cannot_end_their_script(results, tmp_path):
    hostile = "</script><script>alert(1)</script><!--"
    objectives = [hostile, *OBJECTIVES[1:]]
    policies = [{**policy, "objective_means": {hostile: 0.5}} for policy in results["policies"]]
    write({**results, "objectives": objectives, "policies": policies}, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == 2 + 3 and "<script>alert" not in html  # three prompts
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, flags=re.DOTALL)[1])
    assert data["objectives"][0] == hostile


def test_the_page_holds_the_numbers_of_the_charts(results, plain):
    data = report_page.chart_data(plain)
    assert data["names"] == ["base", "grpo", "vpo"] and data["frontPrompts"] == len(results["solved_at"])
    best, in_sets, passed = data["charts"]["at-k"]["panels"]
    assert in_sets["label"] == "best@k, whole sets" and in_sets["series"][2]["x"] == results["set_ks"]
    assert best["series"][2]["mean"] == results["policies"][2]["best_at_k"]["mean"] and best["ceiling"] == 0.9
    assert passed["series"][0]["high"] == results["policies"][0]["pass_at_k"]["high"]
    assert [panel["label"] for panel in data["charts"]["search"]["panels"]] == ["best-of-k", "evolution"]
    assert [panel["label"] for panel in data["charts"]["training"]["panels"]] == ["Set reward", "Reward"]
    assert np.allclose(data["fronts"][1]["prompts"][3], results["fronts"]["grpo"][3], atol=1e-4)
    assert ATTACK not in json.dumps(data)


def test_a_policy_that_was_only_searched_has_its_curve(plain):
    search = [{**run, "policy": "alone"} for run in plain["search"][:1]]
    data = report_page.chart_data({**plain, "search": search})
    assert data["names"][-1] == "alone" and data["charts"]["search"]["panels"][0]["series"][0]["of"] == 3


def test_fronts_beyond_what_a_page_can_hold_are_left_out(results, monkeypatch):
    numbers = [sum(np.size(front[p]) for front in results["fronts"].values()) for p in range(4)]
    monkeypatch.setattr(report_page, "MAX_FRONT_NUMBERS", sum(numbers) - 1)
    data = report_page.chart_data(results)
    assert data["frontPrompts"] == 3 and {len(front["prompts"]) for front in data["fronts"]} == {3}


def test_a_long_pool_has_a_short_table():
    rows = report_page.table_rows(10_000)
    assert rows[0] == 0 and rows[-1] == 9_999 and len(rows) <= report_page.MAX_TABLE_ROWS
    assert report_page.table_rows(30) == list(range(30))


def test_candidates_are_shown_once_best_first_with_what_was_solved(results, tmp_path):
    write(results, tmp_path)
    first, *_ = blocks(tmp_path)
    vpo = first["policies"][-1]
    values = [candidate["value"] for candidate in vpo["candidates"]]
    assert values == sorted(values, reverse=True) and vpo["missing"] == 1
    [twice] = [candidate for candidate in vpo["candidates"] if candidate["text"] == "RIGHT DOWN"]
    assert twice["count"] == 2 and twice["value"] == 0.75 and twice["solved"] and twice["rewards"] == [1, 1, 0, 1]
    assert twice["route"] == [[0, 0], [1, 0], [1, 0]]
    texts = [[vpo["candidates"][place]["text"] for place in response["set"]] for response in vpo["responses"]]
    assert [sorted(of) for of in texts] == [["DOWN", "RIGHT DOWN"], ["RIGHT DOWN"], sorted([ATTACK, "RIGHT"])]


def test_the_list_of_prompts_has_every_prompt(plain):
    lines = [line for line, _ in report_page.pack_prompts(plain["prompts_shown"], plain, 3)]
    assert [line["number"] for line in lines] == [0, 1, 2] and lines[0]["of"] == [0, 1, 2]
    assert lines[0]["best"] == [0.75] * 3 and lines[0]["solved"] == [True] * 3 and lines[2]["apart"] == [1.0] * 3
    assert len(lines[0]["text"]) <= report_page.INDEX_CHARS


def test_a_page_stays_small_whatever_the_responses(plain, monkeypatch):
    """Random letters do not pack: long responses are cut, so that all together fit, and say by how much."""
    monkeypatch.setattr(report_page, "PROMPTS_BYTES", 100_000)
    noise = "".join(random.Random(0).choices(string.ascii_letters, k=300_000))
    [shown] = plain["prompts_shown"][1:2]
    of_one = {**shown["policies"][0], "responses": [{"response": noise, "candidates": []}] * 2}
    long = [{**shown, "number": number, "policies": [of_one]} for number in range(50)]
    packed = list(report_page.pack_prompts(long, plain, 50))
    assert sum(len(block) for _, block in packed) < 110_000
    texts = [
        json.loads(zlib.decompress(base64.b64decode(block)))["policies"][0]["responses"][0]["text"]
        for _, block in packed
    ]
    assert all("more characters are in the pool)" in text and 200 < len(text) < 5000 for text in texts)
    assert texts[0].startswith(noise[:200])
    [(_, whole)] = report_page.pack_prompts([{**long[0], "policies": plain["prompts_shown"][1]["policies"]}], plain, 1)
    assert "more characters" not in zlib.decompress(base64.b64decode(whole)).decode()


def test_where_nothing_is_solved_it_is_said_once(results, tmp_path):
    none = {part: [0.0] * 30 for part in ("mean", "low", "high")}
    policies = [{**policy, "pass_at_k": none} for policy in results["policies"]]
    write({**results, "policies": policies, "search": []}, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert text.count("No candidate of any policy solves its prompt") == 1
    assert "pass@" not in text and "Only vpo ever solves" not in text
    data = report_page.chart_data({**results, "policies": policies})
    assert [panel["label"] for panel in data["charts"]["at-k"]["panels"]] == ["best@k", "best@k, whole sets"]


def test_bars_of_rewards_share_one_scale(results):
    panels = {panel["label"]: panel for panel in report_page.bars(results)}
    assert [panel["ticks"] for panel in panels.values()] == [["0", "0.5", "1"]] * 4
    one, all_of_them = panels["best@1"]["rows"][0], panels["best@30"]["rows"][0]
    assert all_of_them["percent"]["mean"] / one["percent"]["mean"] == pytest.approx(all_of_them["mean"] / one["mean"])
    wide = {**results, "ceiling": {"best": 4.0}}
    assert {panel["label"]: panel["ticks"][-1] for panel in report_page.bars(wide)} == {
        **dict.fromkeys(["best@1", "best@30", "E_w"], "4"),
        "pass@30": "1",
    }


def test_it_says_where_it_comes_from(results, tmp_path):
    made = {
        "model": "runs/vpo",
        "fingerprint": "abc123",
        "temperature": 0.7,
        "rollouts": 10,
        "candidates": 3,
        "seed": 5,
    }
    settings = {"learning_rate": 2e-4, "kl_loss": 0.02}
    more = {"date": "2026-01-02T03:04:05+00:00", "commit": "deadbee", "settings": settings, "pools": {"vpo": made}}
    write({**results, **more}, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    for words in ("2026-01-02T03:04:05+00:00, commit deadbee", "abc123", "learning_rate", "0.7", "10 × 3"):  # noqa: RUF001
        assert words in text
    assert "vpo evaluate --model runs/vpo --rollouts 10 --candidates 3 --temperature 0.7 --seed 5 # and --data" in text


def test_the_command_of_a_pool_is_the_one_that_made_it():
    """A shell reads it as it was; for pools of earlier versions, from what they hold."""
    words = ["vpo", "evaluate", "--model", "m", "--data", "my prompts", "--chat_template_kwargs", '{"a": "it\'s"}']
    assert shlex.split(report_page.evaluate_command({"model": "n", "command": words})) == words
    made = {
        **{"model": "m n", "spec": "maze", "url": "http://h/v1", "api": "chat", "batch": 8, "tell_weights": True},
        **{"chat_template_kwargs": {"enable_thinking": False}, "spec_digest": "0", "fingerprint": None},
    }
    read = shlex.split(report_page.evaluate_command(made), comments=True)
    flags = ["--model", "m n", "--spec", "maze", "--batch", "8", "--url", "http://h/v1", "--api", "chat"]
    assert read[2:] == [*flags, "--chat_template_kwargs", '{"enable_thinking": false}', "--tell_weights"]


def test_the_log_of_a_training_gives_its_curves(tmp_path):
    step = {"time": 1.0, "reward": 0.1, "set_reward": 0.2, "group_diversity": 0.3, "kl": 0.4, "response_length": 30.0}
    log_step(tmp_path, 1, {**step, "candidates_parsed": 2.5, "objective/gold": 0.6, "actor_lr": 1e-6})
    [curve] = training_curve(tmp_path)
    assert curve.pop("seconds") == 0
    assert curve == {
        **{"step": 1, "reward": 0.1, "set_reward": 0.2, "group_diversity": 0.3, "kl": 0.4, "response_length": 30.0},
        **{"candidates_parsed": 2.5, "objective/gold": 0.6},
    }


def test_a_training_shows_all_that_was_logged(plain):
    steps = [
        {**step, "kl": 0.1, "response_length": 30.0, "objective/gold": 0.2} for step in plain["training"][0]["steps"]
    ]
    data = report_page.chart_data({**plain, "training": [{"name": "vpo", "steps": steps}]})
    labels = [panel["label"] for panel in data["charts"]["training"]["panels"]]
    assert labels[2:] == ["KL to the first policy", "Response length, tokens", "Objective gold"]


def test_measures_show_what_there_is(results):
    rows = {row["label"]: row for row in report_page.measures(results)}
    for label in ("best@30", "regret", "coverage", "Pareto size", "hypervolume", "duplicates", "tokens per prompt"):
        assert len(rows[label]["cells"]) == 3
    assert rows["tokens per solved prompt"]["cells"][0]["value"] == "–"  # noqa: RUF001 (it solved none)
    assert rows["best@30"]["ceiling"] == "0.900" and " to " in rows["best@30"]["cells"][0]["interval"]
    short = {
        **results,
        "set_ks": [],
        "policies": [{k: p[k] for k in p if k not in OPTIONAL} for p in results["policies"]],
    }
    labels = [row["label"] for row in report_page.measures(short)]
    assert "E_w" in labels and not {"regret", "coverage", "tokens per prompt"} & set(labels)


def test_the_references_of_the_page_are_to_its_own_parts(results, tmp_path):
    write(results, tmp_path)
    html = re.sub(r"<script>.*?</script>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    ids = re.findall(r' id="([^"]+)"', html)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html))
    assert {a or b for a, b in used} - {f"prompt-{number}" for number in (1, 9)} <= set(ids)  # the script's
    assert len(ids) == len(set(ids))


def test_a_policy_looks_the_same_in_every_report():
    """By its name, whoever else is there; and no two of a report look alike."""
    alone, among = styles(["vpo", "mine"]), styles(["base", "base, sets of 3", "grpo", "mine", "vpo"])
    assert alone["vpo"] == among["vpo"] == KNOWN["vpo"] and alone["mine"] == among["mine"]
    assert among["base, sets of 3"][0] == among["base"][0]
    many = styles([*KNOWN, *(f"policy {i}" for i in range(20))])
    assert len(set(many.values())) == len(many)


def test_names_that_look_like_markup_stay_names(results, tmp_path):
    policies = [{**policy, "name": f"<b>${policy['name']}_$"} for policy in results["policies"]]
    write({**results, "policies": policies, "prompts_shown": [], "title": "<i>$x$</i>"}, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert not {"b", "i"} & {tag for tag, _ in page.elements}
    assert "<b>$vpo_$" in page.text


def test_a_report_needs_none_of_the_optional_parts(results, tmp_path):
    bare = {key: value for key, value in results.items() if key not in OPTIONAL}
    bare |= {"ceiling": None, "training": [], "differences": []}
    bare["policies"] = [{key: p[key] for key in p if key not in OPTIONAL} for p in results["policies"]]
    write(bare, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    for words in ("Training", "Prompts", "exceed", "budget", "left out"):
        assert words not in text
    assert "ceiling" not in format_table(bare)


def test_what_was_left_out_and_what_one_policy_alone_solves_is_said(results, tmp_path):
    write(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "2 prompts are left out" in page.text and "Only vpo ever solves 2 prompts: 1, 9." in page.text
    assert "No prompt is solved by grpo alone." in page.text
    assert ("a", {"href": "#prompt-1"}) in page.elements and ("a", {"href": "#prompt-9"}) in page.elements


def test_steps_that_taught_nothing_are_said(results, tmp_path):
    run = results["training"][0]
    steps = [step | {"candidates_parsed": 0 if step["step"] <= 3 else 2.5} for step in run["steps"]]
    write(results | {"training": [run | {"steps": steps}]}, tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert f"{run['name']}: no candidate could be read in 3 of 20 steps; they taught nothing." in page


def test_zeros_of_a_training_are_said(results, tmp_path):
    for step in range(1, 4):
        log_step(tmp_path / "log", step, {"reward": 0.5, "scorer_zeros": 2})
    run = results["training"][0] | {"steps": training_curve(tmp_path / "log")}
    write(results | {"training": [run, {"name": "other", "steps": run["steps"][:0]}]}, tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert page.count(" in the training of ") == 1
    assert f"6 responses in the training of {run['name']} scored zero because the scorer failed." in page


def test_a_single_k_and_a_single_policy_are_enough(results, tmp_path):
    policy = results["policies"][0]
    short = {name: {key: values[:1] for key, values in policy[name].items()} for name in ("best_at_k", "pass_at_k")}
    write({**results, "ks": [1], "policies": [{**policy, **short}], "differences": []}, tmp_path)
    assert "With 1 candidate per prompt" in Page((tmp_path / "report.html").read_text()).text


def test_the_table_shows_every_policy_in_100_columns(results):
    lines = format_table(results).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:4] == ["policy", "best@1", "best@5", "best@30"]
    for line, policy in zip(lines[2:5], results["policies"], strict=True):
        means = [policy["best_at_k"]["mean"][i] for i in (0, 4, 29)]
        assert line.split()[:4] == [policy["name"], *(f"{mean:.3f}" for mean in means)]
    assert lines[5].split()[:2] == ["ceiling", "0.900"]
    assert lines[6].startswith("best@30: vpo - grpo = +") and lines[6].endswith("vpo is ahead")


def test_a_comparison_matched_by_tokens_says_so(results, tmp_path):
    matched = {**results, "matched": {"by": "tokens", "tokens_per_k": 40.0}}
    write(matched, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "With 1,200 tokens per prompt" in text and "the candidates that fit in 40 tokens" in text
    assert report_page.chart_data(as_json(matched))["matched"] == "40" and "candidates searched" not in text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.1, "vpo is ahead"),
        (-0.1, -0.01, "grpo is ahead"),
        (-0.01, 0.02, "no difference beyond chance"),
    ],
)
def test_a_difference_is_called_one_only_beyond_its_interval(results, low, high, verdict):
    difference = {"a": "vpo", "b": "grpo", "k": 30, "mean": (low + high) / 2, "low": low, "high": high}
    assert format_table({**results, "differences": [difference]}).endswith(verdict)


def test_a_failing_report_leaves_the_earlier_one_as_it_was(results, tmp_path):
    write(results, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError, match="pass_at_k"):
        broken = [{key: policy[key] for key in policy if key != "pass_at_k"} for policy in results["policies"]]
        write({**results, "title": "new", "policies": broken}, tmp_path)
    (tmp_path / "best_at_k.png").unlink()
    (tmp_path / "best_at_k.png").mkdir()  # the last file cannot be replaced
    with pytest.raises(OSError):
        write(results, tmp_path)
    (tmp_path / "best_at_k.png").rmdir()
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == {name: before[name] for name in ("report.json", "report.html")}
