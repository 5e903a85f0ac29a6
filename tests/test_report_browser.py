"""The report in a real browser, headless Chromium, driven by its DevTools protocol: what a reader does and sees.

Skipped where no Chromium is installed: `make browser` installs Debian's.
"""

import copy
import io
import json
import random
import shutil
from collections.abc import Iterator

import matplotlib.image
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_results import ATTACK, candidate, made_up_results, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: `make browser` installs Debian's")
expect.set_options(timeout=60_000)  # a safety on a busy machine
SKILLS = ((0.01, 0.01, 0.01), (0.5, 0.02, 0.03), (0.03, 0.4, 0.05))  # grpo is good at the first, vpo at the second


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def read(browser, tmp_path):
    """Write a report and open it; at the end nothing may have gone wrong in it, nor have been asked of the network."""
    pages, wrong = [], []

    def read(results, **context) -> Page:
        write(results, tmp_path)
        page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}).new_page()
        page.set_default_timeout(60_000)  # a safety on a busy machine
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url) if "report.html" not in request.url else None)
        page.goto((tmp_path / "report.html").as_uri())
        if context.get("java_script_enabled", True):  # charts are drawn in the first frame
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        pages.append(page)
        return page

    yield read
    for page in pages:
        page.context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def results():
    return made_up_results()


@pytest.fixture(scope="module")
def three():
    """Three objectives, and policies that are good at different ones."""
    return made_up_results(prompts=40, skills=SKILLS)


def worth(results, policy: str, weights) -> float:
    """The mean over prompts of max_s w·r_s."""
    return float(np.mean([(np.array(front) @ weights).max() for front in results["fronts"][policy]]))


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"color_scheme": "dark"},
        {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
        {"viewport": {"width": 360, "height": 740}, "java_script_enabled": False},
    ],
    ids=["desktop", "dark", "phone", "phone without JavaScript"],
)
def test_the_page_fits_the_screen_and_its_pictures_are_drawn(read, results, context, tmp_path):
    page = read(results, **context)
    picture = page.screenshot(full_page=True)
    (tmp_path / "report.png").write_bytes(picture)
    pixels = matplotlib.image.imread(io.BytesIO(picture))[::5, ::5, :3]
    assert len({tuple(pixel) for row in pixels[::5] for pixel in row}) > 20  # a picture, not one colour
    assert (pixels.mean() < 0.3) == (context.get("color_scheme") == "dark")
    assert page.locator("main").bounding_box()["width"] <= context.get("viewport", {"width": 1200})["width"]
    width = page.locator("html").evaluate("node => node.scrollWidth")
    assert width == context.get("viewport", {"width": 1200})["width"]  # nothing sticks out to the side
    script = context.get("java_script_enabled", True)
    assert page.locator(".chart .curve").count() == (3 * 3 + 3 * 2 + 2 if script else 0)
    assert page.locator(".static").first.is_visible() == (not script)
    for section in ("weights", "space"):
        assert page.locator(f"#{section}").is_visible() == script
    assert page.get_by_text("With JavaScript this page also has").is_visible() == (not script)
    assert page.get_by_text("With JavaScript this page shows all 3 prompts").count() == (not script)


BROKEN_WORDS = """() => [...document.querySelectorAll("th, h1, h2, h3, figcaption, label, .who")].flatMap((cell) => {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
    while (walk.nextNode()) {
        for (const word of walk.currentNode.data.matchAll(/[^\\s-]+/g)) {
            const range = new Range();
            range.setStart(walk.currentNode, word.index);
            range.setEnd(walk.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
        }
    }
    return broken;
})"""


@pytest.mark.parametrize("width", [1280, 360])
def test_no_word_of_a_header_is_broken_and_the_ceiling_is_in_view(read, three, width):
    """With long names of policies and objectives; those at the corners of the triangle are whole, side by side."""
    long = dict(zip(three["objectives"], ["completion", "collects_gold_first", "avoids_lava_at_all"], strict=True))
    renamed = json.loads(json.dumps(three).replace('"grpo"', '"group_relative"'))
    renamed["objectives"] = list(long.values())
    for policy in renamed["policies"]:
        policy["objective_means"] = {long[key]: value for key, value in policy["objective_means"].items()}
    page = read(renamed, viewport={"width": width, "height": 800})
    assert page.evaluate(BROKEN_WORDS) == []
    ceiling = page.get_by_role("columnheader", name="ceiling", exact=True)
    seen = [ceiling, *page.locator(".panels h2 small, .panels .mark").all()]
    boxes = [one.bounding_box() for one in seen]
    assert len(boxes) > 4 and all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    plot = page.locator("#weights .ternary svg")
    edges, (top, left, right) = plot.bounding_box(), [one.bounding_box() for one in plot.locator(".axis").all()]
    for box in (top, left, right):
        assert edges["x"] - 1 <= box["x"] and box["x"] + box["width"] <= edges["x"] + edges["width"] + 1
        assert box["y"] + box["height"] <= edges["y"] + edges["height"] + 1
    assert left["x"] + left["width"] < right["x"] or left["y"] + left["height"] < right["y"] + 1


def test_the_slider_over_the_weights_changes_who_wins(read, three):
    page = read(three)
    sliders = page.locator("#weights input[type=range]")
    verdict, values = page.locator(".verdict"), page.locator("#weights .bars .value")
    charts = page.locator("#weights .chart svg")

    def set_to(*percents):
        for i, percent in enumerate(percents):
            sliders.nth(i).fill(str(percent))

    winners, pictures = [], []
    for weights in ([1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25]):
        set_to(*(int(100 * w) for w in weights))
        expected = [worth(three, name, weights) for name in ("base", "grpo", "vpo")]
        assert [float(text) for text in values.all_inner_texts()] == pytest.approx(expected, abs=6e-4)
        winners.append(verdict.inner_text())
        pictures.append(charts.last.inner_html())
    assert winners[0].startswith("At these weights grpo wins, ahead of vpo by 0.")
    assert winners[1].startswith("At these weights vpo wins, ahead of grpo by 0.")
    assert len(set(pictures)) == 3
    set_to(0, 0, 0)
    assert verdict.inner_text().startswith("No weight is set, so all count equally.")
    page.get_by_role("button", name="deployment weights").click()
    assert [page.locator("#weights output").nth(i).inner_text() for i in range(3)] == ["33\xa0%"] * 3


def test_the_weights_are_set_without_a_mouse(read, three):
    page = read(three)
    before = page.locator(".verdict").inner_text()
    page.get_by_label("diamond", exact=True).focus()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")  # no gold
    assert page.locator("#weights output").all_inner_texts() == ["33\xa0%", "0\xa0%", "67\xa0%"]
    assert page.locator(".verdict").inner_text() != before
    assert page.get_by_label("diamond", exact=True).get_attribute("aria-valuetext").startswith("diamond 67")


def test_the_ternary_plot_shows_the_winner_of_each_corner(read, three):
    page = read(three)
    plot = page.locator("#weights .ternary svg")
    assert {"grpo", "vpo"} <= {region.get_attribute("data-winner") for region in plot.locator(".region").all()}
    box = plot.bounding_box()
    plot.click(position={"x": box["width"] / 2, "y": 32})  # near the top corner, all weight on the first
    assert int(page.locator("#weights output").first.inner_text().rstrip("\xa0%")) >= 95
    assert page.locator(".verdict").inner_text().startswith("At these weights grpo wins")


@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_any_number_of_objectives_has_its_pictures(read, k):
    results = made_up_results(prompts=8, skills=((0.2,) * k, (0.3,) * k))
    for fronts in results["fronts"].values():  # ragged: one prompt has fewer objectives, as null or as a short row
        fronts[0] = [vector[: max(1, k - 1)] for vector in fronts[0]]
        fronts[1] = [[*vector[: max(1, k - 1)], *[None] * (k > 1)] for vector in fronts[1]]
    page = read(results)
    assert page.locator("#weights .chart svg").count() == {1: 0, 2: 1}.get(k, k)
    assert page.locator("#weights .region").count() >= page.locator("#weights .chart svg").count()
    assert page.locator("#space").is_visible() == (k > 1)
    page.locator("#weights input[type=range]").first.fill("0")
    assert "NaN" not in page.locator("main").inner_text()


def test_an_objective_that_a_prompt_lacks_does_not_count_there(read):
    results = made_up_results(prompts=2, skills=((0.5, 0.5),) * 2)
    results["fronts"] = {"base": [[[0.5, None]], [[0.25, 1]]], "grpo": [[[1, None]], [[0, 0]]]}
    page = read(results)
    values = page.locator("#weights .bars .value")
    assert [float(text) for text in values.all_inner_texts()] == pytest.approx([(0.5 + 0.625) / 2, 0.5], abs=6e-4)
    page.locator("#weights input[type=range]").first.fill("0")  # only the second objective, of the second prompt
    assert [float(text) for text in values.all_inner_texts()] == [1, 0]


def test_the_slider_over_k_reads_the_curves(read, results):
    page = read(results)
    chart = page.locator('[data-chart="at-k"]')
    chart.get_by_label("k", exact=True).focus()
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert chart.locator("output").first.inner_text() == "5"
    rows = chart.locator(".legend tbody tr")
    for i, policy in enumerate(results["policies"]):
        cells = rows.nth(i).locator("td").all_inner_texts()
        assert cells[0].startswith(f"{policy['best_at_k']['mean'][4]:.3f}")
        assert cells[1].startswith(f"{policy['best_at_k_sets']['mean'][0]:.3f}")  # of 3: 5 are no whole sets
        assert cells[2].startswith(f"{policy['pass_at_k']['mean'][4]:.3f}")
    first = chart.locator(".chart svg").first
    first.hover(position={"x": first.bounding_box()["width"] - 20, "y": 50})
    expect(chart.locator("output").first).to_have_text("30")
    before = chart.locator(".curve").first.get_attribute("d")
    chart.get_by_label("logarithmic").check()
    assert chart.locator(".curve").first.get_attribute("d") != before


def test_the_legend_hides_and_shows_a_policy(read, results):
    page = read(results)
    chart = page.locator('[data-chart="at-k"]')
    button = chart.get_by_role("button", name="grpo")
    assert chart.locator(".curve").count() == 9 and button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert chart.locator(".curve").count() == 6 and button.get_attribute("aria-pressed") == "false"
    assert "#0072B2" not in chart.locator(".plots").inner_html()
    page.keyboard.press("Space")
    assert chart.locator(".curve").count() == 9


def test_reward_space_shows_the_chosen_objectives_and_prompts(read, results):
    page = read(results)
    space = page.locator("#space")
    first = space.locator(".chart").inner_html()
    space.get_by_label("across").select_option("diamond")
    second = space.locator(".chart").inner_html()
    marks = space.locator(".marker").count()
    space.get_by_role("button", name="vpo").click()
    assert 0 < space.locator(".chart .marker").count() < marks
    space.get_by_role("button", name="vpo").click()
    space.get_by_label("show").select_option("the sets of one prompt")
    expect(space.locator(".set")).to_have_count(3)  # one response with two different reward vectors for each policy
    assert len({first, second, space.locator(".chart").inner_html()}) == 3
    assert "Prompt 0;" in space.inner_text()


def test_a_candidate_shows_its_route(read, results):
    page = read(results)
    policy = page.locator("#prompt-0 [data-policy]").last
    expect(policy.locator("g.on")).to_have_attribute("data-route", "0")
    policy.get_by_role("button", name="show").nth(1).click()
    assert policy.locator("g.on").get_attribute("data-route") == "1"
    policy.get_by_role("button", name="show").nth(0).hover()
    expect(policy.locator("g.on")).to_have_attribute("data-route", "0")
    page.locator("h1").hover()
    expect(policy.locator("g.on")).to_have_attribute("data-route", "1")
    assert page.locator("#prompt-0 [data-policy]").first.locator("g.on").count() == 1  # each policy has its own
    lines = policy.locator("polyline")
    assert lines.count() == 2  # of the three routes, two visit the same tiles, for one bumps into a wall
    widths = [float(line.get_attribute("stroke-width")) for line in lines.all()]
    assert max(widths) > min(widths)  # written more often


def many(results, number=60, candidates=1):
    """So many prompts; only grpo solves the last, and base and vpo are furthest apart on the tenth.

    Each policy has that many candidates, of which the first is its best.
    """
    draw = random.Random(0)

    def worse() -> dict:
        steps = draw.choices(["UP", "DOWN", "LEFT", "RIGHT"], k=12)
        return candidate(" ".join(steps), [round(draw.uniform(-1, 0), 3) for _ in range(4)])

    good, fair, bad = candidate("RIGHT", [1] * 4), candidate("UP", [0.5] * 4), candidate("DOWN", [0] * 4)
    prompts = []
    for i in range(number):
        chosen = {name: fair for name in ("base", "grpo", "vpo")}
        if i == number - 1:
            chosen["grpo"] = good
        elif i == 9:
            chosen |= {"base": bad, "vpo": candidate("RIGHT", [0.7] * 4)}
        policies = [
            {
                "name": name,
                "pairwise_l1": i % 7,
                "responses": [{"response": "r", "candidates": [one, *(worse() for _ in range(candidates - 1))]}],
            }
            for name, one in chosen.items()
        ]
        text = f"the maze of {'Minos' if i == 33 else 'someone'}"
        prompts.append({"number": i, "prompt": text, "label": None, "policies": policies})
    return {**results, "prompts": number, "prompts_shown": prompts, "only_solved_by": {"grpo": [number - 1]}}


def test_every_prompt_can_be_found_sorted_and_linked_to(read, results):
    page = read(many(results))
    section = page.locator("#prompts")
    listed = section.locator("details[name=prompt]")
    assert listed.count() == 25 and "25 of 60 prompts" in section.inner_text()
    section.get_by_role("button", name="25 more").click()
    assert listed.count() == 50
    section.get_by_label("sorted").select_option("widest gap between policies first")
    assert listed.first.get_attribute("id") == "prompt-9"
    section.get_by_label("sorted").select_option("most diverse first")
    assert listed.first.get_attribute("id") == "prompt-6"
    section.get_by_label("show").select_option("only grpo solves")
    assert listed.count() == 1 and listed.first.get_attribute("id") == "prompt-59"
    section.get_by_label("show").select_option("all prompts")
    section.get_by_label("find a prompt").fill("minos")
    assert listed.count() == 1 and listed.first.get_attribute("id") == "prompt-33"
    section.get_by_label("find a prompt").fill("12")
    assert listed.count() == 1 and listed.first.get_attribute("id") == "prompt-12"
    page.get_by_role("link", name="59", exact=True).click()
    expect(page.locator("#prompt-59 > pre")).to_be_visible()
    assert "RIGHT" in page.locator("#prompt-59").inner_text() and "✓" in page.locator("#prompt-59").inner_text()


def test_a_thousand_prompts_open_at_once(read, results, tmp_path):
    """And 30 different candidates of each policy."""
    page = read(many(results, 1000, candidates=30))
    assert page.locator("#prompts details[name=prompt]").count() == 25 and page.locator("script").count() == 1002
    assert (tmp_path / "report.html").stat().st_size < 20_000_000
    page.get_by_role("link", name="999", exact=True).click()
    expect(page.locator("#prompt-999").get_by_role("button", name="all 30 candidates").first).to_be_visible()


def test_a_link_opens_its_prompt(read, results):
    page = read(results)
    expect(page.locator("#prompt-0 > pre")).to_be_visible()
    expect(page.locator("#prompt-1 > pre")).not_to_be_visible()
    page.get_by_role("link", name="1", exact=True).click()
    expect(page.locator("#prompt-1 > pre")).to_be_visible()
    expect(page.locator("#prompt-0 > pre")).not_to_be_visible()


def test_the_texts_of_models_stay_texts(read, results):
    hostile = copy.deepcopy(results)
    hostile["objectives"] = [f"{ATTACK} {i}" for i in range(4)]
    for part in (
        *hostile["policies"],
        *hostile["training"],
        *(p for q in hostile["prompts_shown"] for p in q["policies"]),
    ):
        part["name"] += ATTACK
    for run in hostile["search"]:
        run["policy"] += ATTACK
        run["procedure"] += ATTACK
    for key in ("fronts", "only_solved_by"):
        hostile[key] = {name + ATTACK: value for name, value in hostile[key].items()}
    hostile |= {key: ATTACK for key in ("title", "spec", "command", "machine")}
    hostile["versions"] = {ATTACK: ATTACK}
    hostile["prompts_shown"][0]["drawing"] = copy.deepcopy(hostile["prompts_shown"][0]["drawing"])
    hostile["prompts_shown"][0]["drawing"]["tiles"][0]["symbol"] = "<i"
    page = read(hostile)
    assert page.evaluate("window.attacked") is None
    expect(page.locator("#prompt-0 > pre")).to_be_visible()
    assert page.locator("script").count() == 2 + 3 and page.locator("main img").count() == 0
    assert page.locator("#weights .chart").count() == 4 and page.locator("h1").inner_text() == ATTACK
    assert page.locator("#prompt-0 > pre").inner_text() == ATTACK
    assert page.locator("#prompt-0 code", has_text=ATTACK).count() == 1


def test_a_script_that_got_in_would_not_run(read, results, tmp_path):
    page = read(results)
    html = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").write_text(html.replace("<main>", "<main><script>window.attacked = 1</script>"))
    other = page.context.new_page()
    refused = []
    other.on("console", lambda message: refused.append(message.text))
    other.goto((tmp_path / "report.html").as_uri())
    assert other.evaluate("window.attacked") is None
    assert any("Content Security Policy" in text for text in refused)


def test_everything_can_be_reached_and_named_without_a_mouse(read, results):
    page = read(results)
    expect(page.locator("#prompt-0 > pre")).to_be_visible()
    page.evaluate(
        """() => { window.controls = [...document.querySelectorAll("input, select, button, a, summary, [tabindex]")]
            .filter((node) => node.checkVisibility()); }"""
    )
    names = page.evaluate(
        """() => controls.map((node) =>
            (node.labels?.[0]?.textContent || node.getAttribute("aria-label") || node.textContent).trim())"""
    )
    assert "" not in names
    reached = []
    for _ in names:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => [controls.indexOf(document.activeElement),
                    getComputedStyle(document.activeElement).outlineStyle]"""
            )
        )
    places = [place for place, _ in reached]
    assert places == sorted(places) and len(set(places)) == len(names) and places[0] == 0  # in the order of the page
    assert {outline for _, outline in reached} == {"solid"}  # and one sees where one is


def test_a_report_with_the_least_in_it_is_drawn(read, results):
    [policy, *_] = results["policies"]
    short = {name: {key: values[:1] for key, values in policy[name].items()} for name in ("best_at_k", "pass_at_k")}
    least = {key: results[key] for key in ("title", "spec", "objectives", "weights", "command", "versions", "machine")}
    least |= {"ks": [1], "ceiling": None, "policies": [{**policy, **short}], "differences": [], "training": []}
    page = read(least)
    assert page.locator('[data-chart="at-k"] .chart svg').count() == 2
    assert not page.locator("#weights").is_visible() and not page.locator("#space").is_visible()
