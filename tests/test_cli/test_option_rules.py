"""Every option of every command is used, or refused where it would do nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import cli
from cli.option_rules import RULES
from tests.support.banks.small_bank import write_dataset

# Options that a command always reads, whatever the others are.
CLUSTER = "scheduler scheduler_file tls_ca tls_cert tls_key wait_workers workers memory"
ALWAYS = {
    "init": "bank_path base_model tokenizer like aliases database arrays as_json",
    "alias": "bank_path action names as_json",
    "ingest": "bank_path sources hub collections text_column skip_bad_rows group_pattern replace memory "
    "downloads keep_downloads assume_base_model adapt_rank as_json scheduler scheduler_file tls_ca tls_cert tls_key "
    "wait_workers workers",
    "list": "bank_path limit offset as_json",
    "show": "bank_path name as_json",
    "verify": "bank_path repair as_json scheduler scheduler_file tls_ca tls_cert tls_key wait_workers workers",
    "clean": "bank_path kinds dry_run yes as_json",
    "group": "bank_path names pattern as_json",
    "remove": "bank_path names",
    "backup": "bank_path target catalogue_only as_json",
    "restore": "bank_path source only as_json",
    "push": "bank_path target names include_unlicensed public replace as_json",
    "pull": "bank_path source names replace database arrays as_json",
    "export": "name merge",
    "distances": f"bank_path metrics compatible csv parquet zarr as_json {CLUSTER}",
    "coefficients": f"bank_path approaches compatible leave_out csv parquet zarr as_json {CLUSTER}",
    # The command itself refuses out, name and include_same with --all, export and weight_error without.
    "predict": "bank_path newdata whole_bank approaches compatible space rank merge out export name include_same "
    "weight_error store as_json memory",
    "finetune": "bank_path newdata out start steps budget examples batch_size learning_rate model train_dtype device "
    "threads seed name text_column skip_bad_rows dtype file_format overwrite as_json memory test push_to",
    "evaluate": "bank_path adapters csv out as_json",
    "generate": "adapter prompt input_file model max_tokens temperature chat device dtype threads",
    "report": f"bank_path out metrics approaches evaluations title overwrite {CLUSTER}",
    "plan": "adapters parameters approaches workers memory measure as_json",
}
NEW = ["x.jsonl", "--out", "o"]
# Command, arguments with which an option does nothing, and the options.
NOTHING: list[tuple[str, list[str], list[list[str]]]] = [
    ("ingest", ["x"], [["--wait-seconds", "3"]]),
    ("ingest", ["x"], [["--include", "x"], ["--exclude", "x"], ["--limit", "3"], ["--dry-run"], ["--yes"]]),
    ("export", ["x", "--out", "o"], [["--dtype", "float16"], ["--memory", "1GiB"], ["--base-gguf", "x"],
                                     ["--model", "x"]]),
    ("export", ["x", "--out", "o", "--merge"], [["--format", "gguf"], ["--overwrite"], ["--base-gguf", "x"]]),
    ("export", ["--out", "o"], [["--adapter", "x"]]),
    ("export", ["x", "--out", "o"], [["--public"]]),
    ("export", ["x", "--out", "o", "--merge"], [["--push-to", "a/b"]]),
    ("export", ["--adapter", "x", "--push-to", "a/b"], [["--out", "o"], ["--format", "gguf"]]),
    ("predict", ["--all"], [["--push-to", "a/b"]]),
    ("predict", NEW, [["--public"]]),
    ("finetune", NEW, [["--public"]]),
    ("export", ["--out", "o", "--merge", "--adapter", "x"], [["--bank", "x"], ["--prediction", "3"]]),
    ("predict", NEW, [["--base-gguf", "x"]]),
    ("finetune", NEW, [["--base-gguf", "x"]]),
    ("predict", NEW, [["--scheduler", "tcp://127.0.0.1:1"], ["--scheduler-file", "x"], ["--workers", "7"],
                      ["--wait-workers", "2"], ["--wait-seconds", "2"], ["--tls-ca", "x"], ["--tls-cert", "x"],
                      ["--tls-key", "x"], ["--leave-out", "group"]]),
    ("finetune", NEW, [["--scheduler", "tcp://127.0.0.1:1"], ["--scheduler-file", "x"], ["--workers", "7"],
                       ["--wait-workers", "2"], ["--wait-seconds", "2"], ["--tls-ca", "x"], ["--tls-cert", "x"],
                       ["--tls-key", "x"], ["--leave-out", "group"], ["--mmd-kernel", "gaussian"], ["--sigma", "3"],
                       ["--width", "7"], ["--protocol", "published"], ["--compare", "uniform"],
                       ["--max-examples", "3"]]),
    ("finetune", [*NEW, "--start", "zero"], [["--approach", "uniform"], ["--compatible", "published"],
                                             ["--space", "delta"], ["--rank", "2"], ["--merge", "ties"],
                                             ["--include-same"],
                                             ["--metric", "js"]]),
    ("finetune", [*NEW, "--approach", "uniform"], [["--metric", "js"], ["--temperature", "2"]]),
    ("finetune", [*NEW, "--approach", "ridge"], [["--top-k", "2"]]),
    ("predict", ["--all"], [["--input-column", "x"], ["--output-column", "x"], ["--text-column", "x"],
                            ["--skip-bad-rows"], ["--dtype", "float16"], ["--overwrite"], ["--wait-seconds", "3"],
                            ["--format", "gguf"]]),
    *((command, [*arguments, "--text-column", "x"], [["--input-column", "x"], ["--output-column", "x"]])
      for command, arguments in (("ingest", ["x"]), ("predict", NEW), ("finetune", NEW),
                                 ("evaluate", ["--adapter", "x", "--test", "y", "--compare", "uniform",
                                               "--data", "z"]))),
    ("evaluate", ["--adapter", "x", "--test", "y"], [["--text-column", "x"]]),
    *((command, arguments, [["--mmd-kernel", "gaussian"], ["--sigma", "3"]])
      for command, arguments in (("distances", []), ("coefficients", []), ("predict", NEW), ("predict", ["--all"]),
                                 ("evaluate", ["--metric", "js"]))),
    ("distances", ["--metric", "mmd"], [["--sigma", "3"]]),
    *((command, [*arguments, "--approach", "uniform"], [["--metric", "js"], ["--temperature", "2"], ["--seed", "3"],
                                                        ["--protocol", "published"], ["--width", "7"]])
      for command, arguments in (("coefficients", []), ("predict", NEW), ("predict", ["--all"]),
                                 ("evaluate", ["--weights-only"]))),
    *((command, [*arguments, "--approach", "ridge"], [["--top-k", "2"], ["--temperature", "2"]])
      for command, arguments in (("coefficients", []), ("predict", NEW), ("evaluate", []))),
    ("evaluate", ["--weights-only"], [["--targets", "x"], ["--max-examples", "3"], ["--data", "x"], ["--model", "x"],
                                      ["--device", "cpu"], ["--dtype", "float16"], ["--batch-size", "2"],
                                      ["--threads", "2"], ["--resamples", "7"], ["--space", "delta"], ["--rank", "2"],
                                      ["--merge", "ties"],
                                      ["--draws", "3"], ["--wait-seconds", "3"]]),
    ("evaluate", ["--adapter", "x", "--test", "y"],
     [["--targets", "x"], ["--metric", "js"], ["--approach", "uniform"], ["--leave-out", "group"], ["--space", "delta"],
      ["--rank", "2"], ["--weights-only"], ["--bank-sizes", "3"], ["--compatible", "published"], ["--draws", "3"],
      ["--workers", "2"], ["--scheduler", "x"], ["--scheduler-file", "x"], ["--tls-ca", "x"], ["--tls-cert", "x"],
      ["--tls-key", "x"], ["--wait-workers", "2"], ["--wait-seconds", "2"], ["--sigma", "3"], ["--top-k", "2"],
      ["--temperature", "2"], ["--protocol", "published"], ["--width", "7"], ["--data", "x"], ["--memory", "1GiB"],
      ["--finetune", "2"], ["--merge", "ties"]]),
    *((command, arguments, [["--density", "0.3"], ["--merge-weights", "peft"], ["--majority-sign", "total"],
                            ["--merge-seed", "3"]])
      for command, arguments in (("predict", NEW), ("predict", ["--all"]), ("finetune", NEW), ("evaluate", []))),
    *((command, [*arguments, "--merge", "ties"], [["--merge-seed", "3"]])
      for command, arguments in (("predict", NEW), ("finetune", NEW), ("evaluate", []))),
    *((command, [*arguments, "--merge", "dare-linear"], [["--majority-sign", "total"]])
      for command, arguments in (("predict", NEW), ("finetune", NEW), ("evaluate", []))),
    ("evaluate", ["--merge", "ties"], [["--bank-sizes", "3"]]),
    ("evaluate", [], [["--examples", "3"], ["--train-batch-size", "2"], ["--learning-rate", "0.1"],
                      ["--train-dtype", "float16"]]),
    ("evaluate", [], [["--test", "x"], ["--compare", "uniform"], ["--input-column", "x"], ["--output-column", "x"],
                      ["--text-column", "x"], ["--skip-bad-rows"]]),
    ("predict", NEW, [["--compare", "uniform"], ["--max-examples", "3"], ["--model", "x"], ["--device", "cpu"],
                      ["--model-dtype", "float16"], ["--batch-size", "2"], ["--threads", "2"]]),
    ("predict", ["--all"], [["--test", "x"]]),
    ("generate", ["--prompt", "x"], [["--input-column", "x"], ["--out", "x"], ["--batch-size", "2"], ["--seed", "3"]]),
    *((command, arguments, [["--examples", "4"], ["--model", "x"], ["--device", "cpu"], ["--threads", "2"]])
      for command, arguments in (("coefficients", []), ("predict", NEW), ("predict", ["--all"]))),
    ("evaluate", [], [["--examples", "4"], ["--train-batch-size", "4"], ["--learning-rate", "0.1"],
                      ["--train-dtype", "bfloat16"]]),
    ("evaluate", ["--finetune", "0,1"], [["--bank-sizes", "3"], ["--space", "delta"], ["--rank", "2"],
                                          ["--merge", "ties"]]),
    ("evaluate", ["--finetune", "0,1", "--approach", "normalized"], [["--weights-only"]]),
    ("evaluate", ["--adapter", "x", "--test", "y"], [["--finetune", "0,1"]]),
    ("predict", [*NEW, "--approach", "selected"], [["--leave-out", "group"], ["--metric", "js"], ["--top-k", "2"]]),
    ("restore", ["x", "--only", "arrays"], [["--database", "x"], ["--arrays", "x"]]),
    ("plan", [], [["--vocabulary", "9"], ["--tokens", "9"], ["--distinct", "9"]]),
    ("plan", ["--approach", "uniform"], [["--metric", "js"]]),
    ("plan", [], [["--model", "x"], ["--data", "x"], ["--max-examples", "3"]]),
    ("plan", ["--evaluate"], [["--merge", "ties"], ["--weight-error"], ["--store"], ["--rates", "x"]]),
    ("plan", ["--evaluate", "--measure"], [["--save-rates", "x"]]),
    ("plan", ["--adapters", "9", "--parameters", "9"], [["--evaluate"]]),
    ("plan", ["--adapters", "9", "--parameters", "9"], [["--bank", "x"]]),
    ("coefficients", [], [["--wait-seconds", "3"]]),
    ("distances", [], [["--wait-seconds", "3"]]),
    ("report", [], [["--wait-seconds", "3"]]),
    ("verify", [], [["--memory", "1GiB"], ["--wait-seconds", "3"]]),
]  # fmt: skip
CASES = [(command, arguments, option) for command, arguments, options in NOTHING for option in options]


def named(command: str, option: str) -> str:
    (found,) = (param.name for param in cli.commands[command].params if option in param.opts)
    assert found is not None
    return found


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_is_used_or_has_a_rule(command: str) -> None:
    """A new option has to be put into one of the two; no option is in both."""
    ruled = [name for rule in RULES.get(command, ()) for name in rule.options]
    always = ALWAYS[command].split()
    assert sorted({*ruled, *always}) == sorted(str(param.name) for param in cli.commands[command].params)
    assert not set(ruled) & set(always) - {"metrics"}


@pytest.mark.parametrize(
    "command", [name for name, one in cli.commands.items() if "csv" in {param.name for param in one.params}]
)
def test_the_screen_is_written_to_once(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--csv", "-", "--json"])
    assert result.exit_code == 2, result.output
    assert "--csv -, --json: both would write to the screen; give --csv a file" in result.stderr


def test_every_rule_is_tried() -> None:
    tried = {(command, named(command, option[0])) for command, _, option in CASES}
    ruled = {(command, name) for command, rules in RULES.items() for rule in rules for name in rule.options}
    assert tried == ruled


@pytest.mark.parametrize(
    ("command", "arguments", "option"), CASES, ids=lambda one: " ".join(one) if one else "-"
)
def test_an_option_that_would_do_nothing_is_refused(
    command: str, arguments: list[str], option: list[str]
) -> None:
    """Before anything is opened: there is no such bank, data, or scheduler."""
    result = CliRunner().invoke(cli, [command, *arguments, *option])
    assert result.exit_code == 2, result.output
    assert f"{option[0]}: would do nothing here; goes with --" in result.stderr.replace(
        "with a bank; -", "with -"
    ).replace("with an --approach", "with --approach").replace("with NEWDATA", "with --NEWDATA").replace(
        "with NAME", "with --NAME"
    ).replace("with answers", "with --answers").replace(
        "with the bank's own tasks", "with --the bank's own tasks"
    ).replace("with two", "with --two").replace("with the plan", "with --the plan")


@pytest.mark.parametrize(
    "arguments",
    [
        ["distances", "--metric", "mmd", "--mmd-kernel", "gaussian", "--sigma", "3", "--workers", "1"],
        ["distances", "--metric", "all", "--mmd-kernel", "gaussian", "--workers", "1"],
        ["coefficients", "--approach", "matching", "--mmd-kernel", "gaussian", "--sigma", "9", "--workers", "1"],
        ["coefficients", "--approach", "all", "--metric", "js", "--temperature", "2", "--top-k", "2", "--workers", "1"],
        ["plan", "--adapters", "9", "--parameters", "9", "--vocabulary", "9", "--tokens", "9", "--distinct", "9"],
        ["evaluate", "--weights-only", "--approach", "uniform", "--bank-sizes", "3,4", "--draws", "2", "--seed", "4",
         "--workers", "1"],
    ],
)  # fmt: skip
def test_one_that_is_used_is_taken(arguments: list[str], bank_template: Path, tmp_path: Path) -> None:
    shutil.copytree(bank_template, tmp_path / "bank")
    result = CliRunner().invoke(cli, arguments, env={"BANK_PATH": str(tmp_path / "bank")})
    assert result.exit_code == 0, result.output


# -- numbers -------------------------------------------------------------------------------------------

NUMBERS = [
    (name, param.opts[0])
    for name, command in sorted(cli.commands.items())
    for param in command.params
    if isinstance(param, click.Option)
    and (
        isinstance(param.type, click.types.IntParamType | click.types.FloatParamType)
        or param.name in {"rank", "bank_sizes", "max_examples", "memory"}
    )
]
WITH = {
    "--seed": ["--approach", "neural"],
    "--width": ["--approach", "neural"],
    "--bank-sizes": ["--workers", "1", "--approach", "uniform"],
    "--sigma": ["--metric", "mmd", "--mmd-kernel", "gaussian"],
    "--rank": ["--space", "delta"],
    "--density": ["--merge", "ties"],
    "--merge-seed": ["--merge", "dare-linear"],
    "--wait-seconds": ["--scheduler", "tcp://127.0.0.1:1", "--wait-workers", "2"],
    "--wait-workers": ["--scheduler", "tcp://127.0.0.1:1"],
    "--adapters": ["--parameters", "9"],
    "--parameters": ["--adapters", "9"],
    **{name: ["--adapters", "9", "--parameters", "9"] for name in ("--vocabulary", "--tokens", "--distinct")},
    "--draws": ["--bank-sizes", "3"],
}  # fmt: skip


@pytest.mark.parametrize("value", ["99999999999999999999", "1e400", "nan", "-1"])
@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=str)
def test_numbers_beyond_all_bounds(
    command: str, option: str, value: str, bank_template: Path, tmp_path: Path
) -> None:
    """They are refused, or mean what they say; an integer that the database cannot hold is no internal error."""
    shutil.copytree(bank_template, tmp_path / "bank")
    more = (
        ["--weights-only"]
        if command == "evaluate" and option in {"--bank-sizes", "--draws", "--seed"}
        else []
    )
    if command == "predict":
        data = str(write_dataset(tmp_path / "new", 50))
        alone = option in {"--wait-seconds", "--wait-workers", "--workers", "--seed", "--width"}
        more = ["--all"] if alone else [data, "--out", str(tmp_path / "out")]
    local = ["--workers", "1"] if command != "plan" and "--all" in [*more, command] else []
    arguments = [command, *more, *WITH.get(option, []), *(local if option == "--seed" else []), option, value]
    result = CliRunner().invoke(cli, arguments, env={"BANK_PATH": str(tmp_path / "bank")})
    assert result.exit_code in {0, 1, 2}
    assert "internal error" not in result.output, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
