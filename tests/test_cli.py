"""The command's names, options and help; other files test what each command does."""

import shlex

import pytest

from picollm.cli import COMMANDS, GROUPS, TRACEBACK, function_of, main, parser
from picollm.files import write_json
from picollm.report.metric_files import METRIC_FILES


def test_each_command_stands_in_one_group_and_does_something():
    named = [name for _, names in GROUPS.values() for name in names]
    assert sorted(named) == sorted(COMMANDS)
    for command in COMMANDS:
        first = function_of(command).__doc__.splitlines()[0]
        assert first and f"{command} " in parser().format_help() and first in parser().format_help()


@pytest.mark.parametrize("title", GROUPS)
def test_the_example_of_a_group_is_one_of_its_commands(title):
    example, names = GROUPS[title]
    program, *words = shlex.split(example)
    assert program == "picollm" and parser().parse_args(words).command in names
    assert f"{title}   (e.g. {example})" in parser().format_help()


def test_data_inspect_is_a_command_of_its_own(capsys):
    found = parser().parse_args(["data", "inspect", "a.txt"])
    assert (found.command, found.path) == ("data inspect", "a.txt")
    assert parser().parse_args(["data", "verify"]).path == "data/tokens"
    for words in (["data"], ["data", "look"], ["nothing"]):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(words)
        assert ended.value.code == 2 and "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser().parse_args(["data", "--help"])
    said = capsys.readouterr().out
    assert "Data   (e.g. picollm data inspect)" in said and "usage: picollm data" in said


def test_no_command_is_none_and_one_name_means_one_thing():
    assert parser().parse_args([]).command is None
    names = {name for options in COMMANDS.values() for option, _ in options for name in option}
    assert "--output" in names and not {"--out", "--folder", "--dir"} & names
    for options in COMMANDS.values():
        for option, how in options:
            assert how["help"] and (("-o" in option) == ("--output" in option))


def test_values_with_commas_are_lists():
    found = parser().parse_args(["bench", "--batches", "1,8", "--backends", "eager-fp32,openvino-fp32"])
    assert found.batches == [1, 8] and found.backends == ["eager-fp32", "openvino-fp32"] and found.output is None


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["bench", "--batches", "1,a"], "'a' is not a whole number of 1 or more"),
        (["bench", "--rounds", "0"], "'0' is not a whole number of 1 or more"),
        (["profile", "--steps", "-1"], "'-1' is not a whole number of 1 or more"),
        (["seeds", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_a_number_that_is_none_is_refused_before_any_work(capsys, words, fault):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2 and fault in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["page", "-o", ""], ["evaluate", ""], ["analyze", "--sentences", ""], ["export", "-o", ""]]
)
def test_an_empty_argument_such_as_an_unset_variable_is_refused(tmp_path, monkeypatch, words):
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["picollm", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert "is empty: name one, or leave it out" in str(ended.value.code) and len(list(tmp_path.iterdir())) == 1


def test_a_fault_that_nobody_thought_of_gives_a_one_line_error_too(tmp_path, monkeypatch):
    """Metrics that lack keys of this version."""
    (tmp_path / "Snakefile").touch()
    for name in (*(f"metrics/{name}" for name in METRIC_FILES), "heads", "benchmark"):
        write_json(tmp_path / f"reports/{name}.json", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["picollm", "summary"])
    monkeypatch.delenv(TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith("picollm: KeyError: 'train_articles' (") and TRACEBACK in ended.value.code
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(KeyError):
        main()
