"""Drawings of candidates: the maze's, what a wrong one is refused for, and hostile candidates."""

import copy
import json

import numpy as np
import pytest

from reward_specs.maze.maze import drawing
from vpo_plugin.report.write import write_report
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.check import check_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import draw, known_answers, read_rows
from vpo_plugin.search.comparison import Comparison
from vpo_plugin.search.pool import Pool

LABEL = {"grid": ["S.G", "#B.", "DLE"], "max_steps": 6}


def test_the_maze_is_drawn_with_the_cells_that_each_route_visits():
    spec = load_spec("maze_small")
    drawn = draw(spec, LABEL, ["RIGHT RIGHT DOWN DOWN UP", "right, down LEFT", "RIGHT RIGHT DOWN DOWN UP"])
    assert (drawn["width"], drawn["height"]) == (3, 3)
    assert {(tile["x"], tile["y"]): tile["name"] for tile in drawn["tiles"]} == {
        **{(0, 0): "start", (2, 0): "gold", (0, 1): "wall", (1, 1): "bonus"},
        **{(0, 2): "diamond", (1, 2): "lava", (2, 2): "exit"},
    }
    assert drawn["routes"] == {
        "RIGHT RIGHT DOWN DOWN UP": [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]],  # it ends at the exit
        "right, down LEFT": [[0, 0], [1, 0], [1, 1]],  # and into the wall
    }


@pytest.mark.parametrize(
    "text",
    ["", "   ", "fly", "<script>alert(1)</script>", "UP </text><script>", "RIGHT\x00", "🙂", "UP" * 100_000, "1,2 3,4"],
)
def test_what_is_no_route_has_none_and_its_words_go_nowhere(text):
    drawn = draw(load_spec("maze"), LABEL, [text, "RIGHT"])
    assert list(drawn["routes"]) == ["RIGHT"] and (not text.strip() or text not in json.dumps(drawn["tiles"]))


def test_a_long_route_ends_with_the_step_budget():
    drawn = draw(load_spec("maze"), LABEL, ["RIGHT LEFT " * 3000])
    assert len(next(iter(drawn["routes"].values()))) == LABEL["max_steps"] + 1


def test_a_spec_without_a_drawing_draws_nothing():
    assert draw(load_spec("toolrl"), {}, ["a"]) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(routes=[]), "A drawing of 1 candidates needs as many routes, but has 0"),
        (lambda d: d.update(routes=["<svg>"]), "routes"),
        (lambda d: d.update(routes=[[(0, "<b>")]]), "routes"),
        (lambda d: d.update(routes=[[(0, -1)]]), "routes"),
        (lambda d: d.update(width=0), "width"),
        (lambda d: d["tiles"][0].update(colour="red;x:y"), "colour"),
        (lambda d: d["tiles"][0].update(symbol="<script>"), "symbol"),
        (lambda d: d.update(svg="<svg/>"), "svg"),
    ],
)
def test_a_wrong_drawing_is_refused(change, complaint, monkeypatch):
    def wrong(label, candidates):
        drawn = copy.deepcopy(drawing(label, candidates))
        change(drawn)
        return drawn

    monkeypatch.setattr("reward_specs.maze.maze.drawing", wrong)
    with pytest.raises(ValueError, match=complaint):
        draw(load_spec("maze_small"), LABEL, ["RIGHT"])


def test_a_comparison_draws_its_prompts_and_the_report_shows_them(tmp_path):
    spec = load_spec("maze_small")
    rows = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(spec, "test", 2, seed=0)]
    routes = [[text for text, _ in known_answers(spec, json.loads(row["label"]))][:2] for row in rows]
    matrices, responses = [], []
    for number, (row, texts) in enumerate(zip(rows, routes, strict=True)):
        candidates = [*texts, "<script>alert(1)</script>"]
        response = write_response(spec, candidates)
        matrices.append([score_response(spec, response, json.loads(row["label"]), 3).matrix])
        responses.append({"prompt": number, "response": response, "candidates": candidates, "tokens": 9})
    pool = Pool(np.array(matrices), responses, {}, rows)
    compared = Comparison({("one", 0): pool, ("other", 0): pool}, spec, rows)
    for shown, texts in zip(compared.prompts(), routes, strict=True):
        assert set(shown["drawing"]["routes"]) == set(texts)
    more = {"title": "t", "command": "c", "machine": "m", "versions": {}, "training": []}
    write_report(compared.results() | more, tmp_path, compared.prompts())
    assert (tmp_path / "report.html").read_text().count("data-block>") == 2


def test_checking_a_spec_draws_its_known_answers(monkeypatch):
    monkeypatch.setattr("reward_specs.maze.maze.drawing", lambda label, candidates: {})
    with pytest.raises(ValueError, match="Drawing"):
        check_spec(load_spec("maze_small"))
