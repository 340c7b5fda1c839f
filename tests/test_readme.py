"""The README tells what the code does."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_table_of_detectors_is_the_registry_s():
    """If this fails: put the output of `recollect models --markdown` between the two marks."""
    from recollect.cli.models import describe, markdown
    from recollect.registry import list_models

    table = README.split("<!-- models -->")[1].split("<!-- end of models -->")[0].strip()
    expected = markdown([describe(n) for n in list_models() if not n.endswith("_tiny")])
    assert all_but_last_column(table) == all_but_last_column(expected)


def all_but_last_column(table):
    """The last one holds what we measured, which no code knows."""
    return [line.rsplit("|", 2)[0] for line in table.splitlines()]


def test_commands_and_links_exist():
    from recollect.cli import VERBS

    for verb in re.findall(r"^recollect (\w[\w-]*)", README, re.MULTILINE):
        assert verb in VERBS, verb
    root = Path(__file__).parents[1]
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (root / link).exists(), link
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_passes_in_the_table_are_what_the_rule_gives():
    from recollect import Recollection

    for rule, groups, passes in re.findall(r"`Recollection\((.*?)\)`.*?\| ([\d ]+) \| (\d+) \|", README):
        options = {k: None if v == "None" else int(v) for k, v in re.findall(r"(\w+)=(\w+)", rule)}
        expected = Recollection(**options).groups(6)
        assert [int(g) for g in groups.split()] == expected and int(passes) == sum(expected)
