import json
import re
from pathlib import Path

import numpy as np
import pytest
from headless_browser import act
from PIL import Image
from stage_scenes import predictions, random_scene
from test_oracle import truth_of

from recollect.analysis.report import ReportRun, choose_images, render_page, write_report
from recollect.analysis.run_analysis import analyse_run

NASTY = ['<img src=x onerror="window.hacked=1">', "</script><script>window.hacked=1</script>"]


class Pictures:
    """Images on disk with nasty names; all 60 x 60."""

    names, category_ids = NASTY, [10, 20]

    def __init__(self, folder, count):
        self.image_ids = list(range(1, count + 1))
        self.files = [folder / f"scene {i} <b>&amp;.png" for i in range(min(count, 8))]
        noise = np.random.default_rng(0).integers(0, 255, (8, 60, 60, 3), dtype=np.uint8)
        for file, pixels in zip(self.files, noise):
            Image.fromarray(pixels).save(file)

    def size(self, index):
        return 60, 60

    def file(self, index):
        return self.files[index % len(self.files)]


def make_report(folder, images=6, queries=12, stages=4, runs=2, bootstrap=20):
    data = Pictures(folder, images)
    reports = []
    said, things = random_scene(3, images=images, queries=queries, stages=stages)
    for r in range(runs):
        g = np.random.default_rng(r)
        one = [[*im[:-1], [(s * g.uniform(0.4, 1), k, b) for s, k, b in im[-1]]] for im in said]
        run = analyse_run(f"run <{r}>", predictions(one), truth_of(things), NASTY, [10, 20], bootstrap=bootstrap)
        points = {i: {q: g.uniform(0, 1, (stages, 32, 2)) for q in range(queries // 2)} for i in data.image_ids}
        curves = {"loss": [(float(i), 10 / (i + 1)) for i in range(1000)], "AP": [(10.0, 0.1), (20.0, 0.3)]}
        reports.append(ReportRun(run, curves if r == 0 else {}, points))
    chosen = choose_images([r.analysis for r in reports], 200)
    path = folder / "report.html"
    write_report(path, reports, data, chosen, title="plain & <SQR>", subtitle="a test")
    return path, reports


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("report"))


def test_the_file_needs_nothing_else_and_names_are_escaped(page):
    text = page[0].read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text)
    assert "@import" not in text and "fetch(" not in text
    assert text.count("<script") == 2 and "onerror=" not in re.sub(
        r'<script type="application/json".*?</script>', "", text
    )
    assert "<title>plain &amp; &lt;SQR&gt;</title>" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert data["classes"] == NASTY and len(data["images"]) == 6
    assert all(image["src"].startswith("data:image/jpeg") for image in data["images"])


def test_what_was_said_about_an_image_is_in_the_page(page):
    path, reports = page
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL).group(1))
    for place, image in enumerate(data["images"]):
        for run, said in zip(reports, image["runs"]):
            fading, made = run.analysis.fading, run.analysis.predictions
            assert said["counts"]["fading"] == fading.fading[place].sum()
            assert sum(q["k"] == 1 for q in said["queries"]) == fading.fading[place].sum()
            assert len(said["missed"]) == said["counts"]["missed"]
            for query in said["queries"]:
                assert query["x"][2] == np.round(made.boxes[place, 2, query["i"]], 1).tolist()
                if query["m"] >= 0:
                    assert image["truth"][query["m"]][4] == query["l"][-1]  # matched objects have the query's class


def test_data_that_is_no_number_is_refused():
    with pytest.raises(ValueError):
        render_page("x", {"v": float("nan")})


def test_images_worth_browsing_come_first(tmp_path):
    said, things = random_scene(4, images=40)
    run = analyse_run("r", predictions(said), truth_of(things), NASTY, [10, 20], bootstrap=0)
    chosen = choose_images([run], 12)
    assert len(chosen) == 12 and chosen == sorted(chosen)
    fading = run.fading.counts[:, 1]
    assert int(fading.argmax()) in chosen and int(run.fading.counts[:, 4].argmax()) in chosen
    assert choose_images([run], 100) == list(range(40))


USER = Path(__file__).with_name("act_as_user.js").read_text(encoding="utf-8")
CONTRAST = Path(__file__).with_name("measure_contrast.js").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_user_in_a_browser(page, tmp_path):
    path, reports = page
    said = act(path, USER, tmp_path)
    assert not any("error" in what for what in said), said
    facts = {k: v for what in said for k, v in what.items()}
    assert facts["ready"] == "yes" and facts["hacked"] and facts["failures"] == []
    assert facts["panes"] == 2 and facts["images"] == 6 and facts["charts"] >= 9 and facts["foreign"] == 0
    assert facts["slider"] and facts["caption"].startswith("run <0>, stage 1 of 4")
    assert facts["threshold"] and facts["some"] and facts["truths"] and facts["hidden"] == 0
    assert facts["chosen"] == 1 and facts["points"] == 32 and facts["rows"] == 5
    assert facts["heading"].startswith("run <0>: query 0 ends as")
    assert facts["moved"] and facts["none"] == 0
    with_fading = sum(any(r.analysis.fading.counts[i, 1] for r in reports) for i in range(6))
    assert facts["fading"] == with_fading and facts["current"]
    assert facts["kinds"] == ["fading"]
    assert facts["step"] and facts["place"].startswith("2 of") and facts["theme"]


@pytest.mark.slow
def test_two_hundred_images_do_not_freeze(tmp_path):
    path, _ = make_report(tmp_path, images=200, queries=60, stages=6, runs=1, bootstrap=0)
    said = act(
        path,
        """
        const loaded = performance.now(), slider = document.querySelector("#stage");
        for (let i = 0; i < 60; i++) { slider.value = 1 + (i % 6); slider.dispatchEvent(new Event("input")); }
        for (let i = 0; i < 60; i++) document.querySelector("#after").click();
        const images = document.querySelectorAll("#list button").length;
        say({ images, loaded, redraw: (performance.now() - loaded) / 120 });
        """,
        tmp_path,
    )
    (facts,) = said
    assert facts["images"] == 200
    # milliseconds; generous, because test machines are shared: a quiet core needs a tenth
    assert facts["loaded"] < 20_000 and facts["redraw"] < 500, facts
    assert Path(path).stat().st_size < 30e6


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_legible_in_light_and_dark(page, tmp_path, dark):
    """Text stands out from its ground by WCAG's 4.5 : 1, as the browser itself computes the colours."""
    said = dict(act(page[0], CONTRAST, tmp_path, dark=dark))
    assert (said.pop("ground") < 0.1) is dark
    assert min(said.values()) > 4.5, said
