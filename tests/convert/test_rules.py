"""The machinery of name tables, on tables of a few lines."""

import pytest
import torch
from torch import nn

from recollect.convert.rules import ConversionError, Rule, Table, bind, read_options, renamed, tied, to_ours, to_theirs


def table(*rules, **more):
    return Table("somewhere", ("family",), "marker", rules, **more)


def numbers(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_numbers_and_rest_follow_both_ways():
    rules = table(Rule("head.{s}.fc.*", "stages.{s}.to_class.*"))
    theirs = {"head.0.fc.weight": numbers(2), "head.11.fc.bias": numbers(3)}
    ours = {
        "stages.0.to_class.weight": theirs["head.0.fc.weight"],
        "stages.11.to_class.bias": theirs["head.11.fc.bias"],
    }
    assert to_ours(rules, theirs, ours).state == ours
    assert to_theirs(rules, ours) == theirs
    assert renamed(rules, "head.4.fc.weight") == "stages.4.to_class.weight"
    assert renamed(rules, "head.x.fc.weight") is None


def test_the_first_rule_that_fits_decides():
    rules = table(Rule("a.0.*", "special.*"), Rule("a.{i}.*", "general.{i}.*"))
    theirs = {"a.0.w": numbers(1), "a.1.w": numbers(2)}
    found = to_ours(rules, theirs, {"special.w": numbers(1), "general.1.w": numbers(2)}).state
    assert set(found) == {"special.w", "general.1.w"}


def test_parts_are_concatenated_and_cut_again():
    rules = table(Rule(("q.*", "k.*", "v.*"), "qkv.*"))
    theirs = {"q.w": torch.zeros(2, 3), "k.w": torch.ones(2, 3), "v.w": torch.full((2, 3), 2.0)}
    ours = to_ours(rules, theirs, {"qkv.w": torch.empty(6, 3)}).state
    assert ours["qkv.w"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    back = to_theirs(rules, ours)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs) and set(back) == set(theirs)
    with pytest.raises(ConversionError, match=r"qkv\.w: only 2 of its 3 parts"):
        to_ours(rules, {"q.w": theirs["q.w"], "v.w": theirs["v.w"]}, {"qkv.w": torch.empty(6, 3)})


def test_copies_of_theirs_are_one_tensor_of_ours():
    rules = table(Rule("stage.{s}.own", "stages.{s}.own"), Rule("head.{s}.w", "head.w", copies=("again.w",)))
    one = numbers(2)
    ours = {"stages.0.own": numbers(1), "stages.1.own": numbers(1), "head.w": one}
    theirs = {"stage.0.own": numbers(1), "stage.1.own": numbers(1), "head.0.w": one, "head.1.w": one, "again.w": one}
    assert set(to_theirs(rules, ours)) == set(theirs)
    assert torch.equal(to_ours(rules, theirs, ours).state["head.w"], one)
    with pytest.raises(ConversionError, match=r"head\.1\.w: differs from another entry for head\.w"):
        to_ours(rules, {**theirs, "head.1.w": one + 1}, ours)


def test_one_tensor_of_theirs_fills_the_copies_of_ours():
    rules = table(Rule("stage.{s}.own", "stages.{s}.own"), Rule("norm", "stages.{s}.norm"))
    ours = {
        "stages.0.own": numbers(1),
        "stages.1.own": numbers(1),
        "stages.0.norm": numbers(2),
        "stages.1.norm": numbers(2),
    }
    theirs = {"stage.0.own": numbers(1), "stage.1.own": numbers(1), "norm": numbers(2)}
    assert set(to_ours(rules, theirs, ours).state) == set(ours)
    assert set(to_theirs(rules, ours)) == set(theirs)


def test_tied_modules_of_ours_must_be_equal_in_the_file():
    shared = nn.Linear(1, 1, bias=False)
    state = nn.ModuleList([shared, shared]).state_dict(keep_vars=True)
    assert tied(state) == [["0.weight", "1.weight"]]
    rules = table(Rule("*", "*"))
    with pytest.raises(ConversionError, match=r"1\.weight: differs from 0\.weight, but they are one tensor of ours"):
        to_ours(rules, {"0.weight": torch.zeros(1, 1), "1.weight": torch.ones(1, 1)}, state)


def test_capital_letters_are_counts_of_our_model():
    rules = table(Rule("b.{S}", "encoder"), Rule("b.{s}", "stages.{s}"), counts={"S": "stages.{s}"})
    ours = {"stages.0": numbers(1), "stages.1": numbers(1), "encoder": numbers(3)}
    assert set(to_theirs(rules, ours)) == {"b.0", "b.1", "b.2"}
    assert to_theirs(rules, ours)["b.2"].shape == (3,)
    assert bind(rules, ours).rules[0].theirs == ("b.2",)


def test_entries_without_use_come_back():
    rules = table(Rule("w", "w"), Rule("extra", None, why="never read"))
    theirs = {"w": numbers(1), "extra": numbers(5)}
    converted = to_ours(rules, theirs, {"w": numbers(1)})
    assert set(converted.state) == {"w"} and set(converted.unused) == {"extra"}
    assert set(to_theirs(rules, converted.state, converted.unused)) == set(theirs)


def test_entries_that_files_lack_stay_as_they_are():
    rules = table(Rule("*", "*"), filled=("*counter",))
    ours = {"w": numbers(2), "bn.counter": torch.tensor(7)}
    assert to_ours(rules, {"w": numbers(2)}, ours).state["bn.counter"] == 7
    assert set(to_theirs(rules, ours)) == {"w"}


def test_faults_name_keys_and_both_shapes_ten_at_most():
    rules = table(Rule("w.{i}", "w.{i}"))
    expected = {"w.0": torch.empty(2, 3), "w.1": torch.empty(4)}
    with pytest.raises(ConversionError) as caught:
        to_ours(rules, {"w.0": torch.empty(5, 3), "w.2": torch.empty(6), "other": torch.empty(7)}, expected)
    text = str(caught.value)
    assert "other (7,): no rule of the table 'somewhere' covers it" in text
    assert "w.0: the model has (2, 3), the file (5, 3)" in text
    assert "w.1: the model has (4,), the file has none" in text
    assert "w.2: the file has (6,), the model none" in text
    with pytest.raises(ConversionError) as caught:
        to_ours(rules, {}, {f"w.{i}": torch.empty(i + 1) for i in range(25)})
    assert str(caught.value).count("\n") == 11 and "and 15 more" in str(caught.value)
    with pytest.raises(ConversionError, match="no rule"):
        to_theirs(rules, {"unknown": numbers(1)})


def test_options_follow_from_shapes_and_counts():
    rules = table(options={"num_classes": ("fc.{s}.bias", 0), "num_stages": ("fc.{s}.bias", None)})
    state = {"fc.0.bias": torch.empty(9), "fc.1.bias": torch.empty(9)}
    assert read_options(rules, state) == {"num_classes": 9, "num_stages": 2}
    with_background = table(options={"num_classes": ("fc.{s}.bias", 0)}, no_object=True)
    assert read_options(with_background, state) == {"num_classes": 8}
    assert read_options(rules, {}) == {}
