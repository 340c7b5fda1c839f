import pytest

from recollect.analysis.curves import draw_curves, read_curves, smoothed
from recollect.cli import main
from recollect.cli.plot import unique_names

CSV = "step,loss,lr,AP,AP50\n20,4.5,0.1,,\n40,3.5,0.1,0.125,0.3\n30,4.0,0.1,,\n60,nonsense,0.1,0.25,0.5\n"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "plain $x$"
    folder.mkdir()
    (folder / "metrics.csv").write_text(CSV)
    return folder


def test_columns_are_read_in_order_of_steps(run):
    curves = read_curves(run)
    assert curves["loss"] == [(20, 4.5), (30, 4.0), (40, 3.5)]
    assert curves["AP"] == [(40, 0.125), (60, 0.25)]
    assert smoothed(curves["loss"], 2) == [(20, 4.5), (30, 4.25), (40, 3.75)]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), ("step,loss\n", "no numbers"), ("step,loss\nx,1\n", "line 2"), ("loss\n1\n", "line 2")],
)
def test_files_that_hold_no_curve_are_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_curves(tmp_path)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_verb_draws_one_or_several_runs(run, tmp_path, capsys, suffix, start):
    other = tmp_path / "sqr"
    other.mkdir()
    (other / "metrics.csv").write_text("step,loss,AP\n10,9,0.1\n20,8,0.2\n")
    out = tmp_path / "new" / f"curves.{suffix}"
    assert main(["plot", str(run), str(other), "--out", str(out), "--smooth", "2", "--log"]) == 0
    assert out.read_bytes().startswith(start)
    assert str(out) in capsys.readouterr().out
    if suffix == "svg":
        assert out.read_text().count('<g id="axes_') == 3  # loss, AP, AP50


def test_faults_are_one_sentence(run, tmp_path, capsys):
    for words, expected in (
        (["plot", str(tmp_path / "nowhere")], "no such file"),
        (["plot", str(run), "--out", str(tmp_path / "a.doc")], "written as .png, .svg"),
        (["plot", str(run), "--columns", "speed"], "no run has speed"),
        (["plot", str(run), "--smooth", "0"], "--smooth 0"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1


def test_there_is_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="neither loss nor AP"):
        draw_curves({"a": {"lr": [(1, 2)]}}, tmp_path / "x.png")


def test_names_tell_runs_apart(tmp_path):
    assert unique_names((tmp_path / "a", tmp_path / "b")) == ["a", "b"]
    assert unique_names((tmp_path / "a/run", tmp_path / "b/run")) == ["a/run", "b/run"]
    assert len(set(unique_names((tmp_path / "a", tmp_path / "a")))) == 2
