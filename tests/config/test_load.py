"""Composition, typing, the messages for what is wrong, and configurations that try to run code."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import cpu_seconds

from megagpt.config.explain import fields
from megagpt.config.load import from_dict, from_saved, groups, load, read, save, to_dict, to_yaml
from megagpt.config.renamed import RENAMED
from megagpt.config.schema import Config, CorpusConfig
from megagpt.errors import ConfigError


def problems(call, *arguments) -> list[str]:
    """The lines of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in lines[1:]] if len(lines) > 1 else lines


def test_values_arrive_typed():
    config = load(
        [
            "optim.lr='1e-3'",
            "optim.train_tokens=3e9",
            "model.num_query_groups=4",
            "model.attention_pattern=[banded,dense]",
            "data.corpora=[{path:a,weight:2},{path:b}]",
            "run_name=125",
            "logging.wandb=off",
        ]
    )
    assert config.optim.lr == 1e-3
    assert config.optim.train_tokens == 3_000_000_000
    assert type(config.optim.train_tokens) is int
    assert config.model.attention_pattern == ("banded", "dense")
    assert config.data.corpora == (CorpusConfig("a", 2.0), CorpusConfig("b", 1.0))
    assert type(config.data.corpora[0].weight) is float
    assert config.run_name == "125"
    assert config.logging.wandb == "off"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_groups_compose_and_the_command_line_wins():
    config = load(["experiment=demo", "model=tiny", "optim.lr=0.5", "+model.bias=false"])
    assert (config.run_name, config.model.name) == ("demo", "tiny")
    assert (config.optim.lr, config.model.bias) == (0.5, False)
    assert config.optim.global_batch_size == load(["optim=demo"]).optim.global_batch_size


def test_keys_may_refer_to_keys():
    assert load(["model=tiny", "run_name=${model.name}"]).run_name == load(["model=tiny"]).model.name


@pytest.mark.parametrize(
    "typed",
    ["2.10", "2024_11", "1e-4", "007", "0x1f", "true", "on", "a b", "ü", "x=1,y=2", "it's", "a\\b", "a\\", "(a)"],
)
def test_text_stays_as_it_was_typed(typed):
    config = load([f"run_name={typed}", f"data.tokenizer=/{typed}", f"+checkpoint.load={typed}"])
    assert (config.run_name, config.data.tokenizer, config.checkpoint.load) == (typed, f"/{typed}", typed)


def test_text_in_quotes_and_null_are_what_they_were():
    assert load(["run_name='2.10'"]).run_name == load(['run_name="2.10"']).run_name == "2.10"
    assert load(["checkpoint.load=null"]).checkpoint.load is None


def test_a_number_in_a_list_of_text_is_refused():
    for override, key in (
        ("data.conversations=[a,2024_11]", "data.conversations[1]"),
        ("data.corpora=[{path:2024_11}]", "data.corpora[0].path"),
    ):
        (line,) = problems(load, [override])
        assert line.startswith(f"{key}: expected text, got 202411") and "quotes" in line
    assert load(["data.conversations=[a,'2024_11']"]).data.conversations == ("a", "2024_11")


def test_signs_in_a_list_need_quotes_and_the_message_says_so():
    (line,) = problems(load, ["data.conversations=[/day=1/a.jsonl]"])
    assert "in quotes" in line
    assert load(["data.conversations=['/day=1/a, b.jsonl']"]).data.conversations == ("/day=1/a, b.jsonl",)


def test_the_home_folder_may_be_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = [
        "data.tokenizer=~/t.json",
        "data.corpora=[{path:'~/web'},{path:/a}]",
        "data.conversations=['~/c.jsonl']",
    ]
    config = load([*overrides, "checkpoint.load=~/runs/a", "stage.sample_prompts=['~/ is home']"])
    assert config.data.tokenizer == f"{tmp_path}/t.json"
    assert [corpus.path for corpus in config.data.corpora] == [f"{tmp_path}/web", "/a"]
    assert config.data.conversations == (f"{tmp_path}/c.jsonl",)
    assert (config.checkpoint.load, config.stage.sample_prompts) == (f"{tmp_path}/runs/a", ("~/ is home",))


def test_a_key_of_any_length_is_refused_in_few_words():
    (line,) = problems(load, ["a." * 3000 + "=1"])
    assert "cannot be read as an override" in line and len(line) < 500


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("optim.learning_rate=1", "optim.lr"),
        ("optm.lr=1", "optim.lr"),
        ("lr=1", "optim.lr"),
        ("optim.weight_dcay=0", "optim.weight_decay"),
        ("parallel.tp=2", "parallel.tensor_parallel_size"),
        ("parallel.pp=2", "parallel.pipeline_parallel_size"),
        ("parallel.zero=2", "parallel.zero_stage"),
        ("model.attn_heads=2", "model.num_attention_heads"),
        ("model.n_layers=2", "model.num_layers"),
        ("model.seq_length=2", "model.sequence_length"),
        ("model.vocab=2", "model.vocab_size"),
        ("checkpoint.save_interval=2", "checkpoint.interval"),
        ("runname=x", "run_name"),
        ("modle=tiny", "model"),
    ],
)
def test_unknown_key_names_the_nearest(override, meant):
    key = override.partition("=")[0]
    assert problems(load, [override]) == [f"{key}: no such key; did you mean {meant}?"]


@settings(deadline=None)  # a busy machine is slow
@given(st.sampled_from(sorted(fields())), st.data())
def test_one_wrong_letter_still_finds_the_key(key, data):
    section, dot, name = key.rpartition(".")
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = f"{section}{dot}{name[:place]}x{name[place + 1 :]}"
    alike = [other for other in fields() if len(other) == len(key) and sum(map(str.__ne__, other, wrong)) == 1]
    if len(name) < 5 or wrong in fields() or len(alike) > 1:  # beta1 and beta2 are as near to betax
        return
    nested: dict = {name[:place] + "x" + name[place + 1 :]: 1}
    (line,) = problems(from_dict, {section: nested} if section else nested)
    assert line == f"{wrong}: no such key; did you mean {key}?"


def test_unlike_key_lists_what_there_is():
    (line,) = problems(load, ["checkpoint.zzzzzz=1"])
    names = [field.name for field in dataclasses.fields(Config().checkpoint)]
    assert line == f"checkpoint.zzzzzz: no such key; the keys of checkpoint are {', '.join(names)}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=gpt3_125", "did you mean model=gpt3_125m?"),
        ("parallel=tensr", "did you mean parallel=tensor?"),
        ("experiment=zzzz", f"the options are {', '.join(groups()['experiment'])}"),
        ("model=null", "no such option"),
        ("model=[tiny,demo]", "no such option"),
        ("model@x=tiny", "write GROUP=OPTION"),
        ("a/b=tiny", "write GROUP=OPTION"),
        ("optim.lr=1,2", "one run takes one"),
        ("optim.lr=range(1,3)", "one run takes one"),
        ("foo", "write foo=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("optim.lr=[1", "cannot be read as an override"),
        ("~seed", "cannot be composed"),
        ("seed=${nope}", "'nope' not found"),
        ("run_name=???", "cannot be composed"),
        ("hydra.run.dir=x", "Hydra only composes"),
        ("hydra/launcher=x", "Hydra only composes"),
    ],
)
def test_override_that_is_not_one(override, message):
    (line,) = problems(load, [override])
    assert override.partition("=")[0].lstrip("~") in line
    assert message in line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"num_layers": 3.5}}, "model.num_layers: expected a whole number, got 3.5"),
        ({"model": {"num_layers": True}}, "model.num_layers: expected a whole number, got true"),
        ({"model": {"num_layers": None}}, "model.num_layers: expected a whole number, got null"),
        ({"model": {"num_query_groups": True}}, "model.num_query_groups: expected a whole number or null, got true"),
        ({"model": {"bias": 3}}, "model.bias: expected true or false, got 3"),
        ({"model": {"name": [1]}}, "model.name: expected text, got [1]"),
        ({"model": 3}, "model: expected a mapping of keys to values, got 3"),
        ({"optim": {"lr": "fast"}}, "optim.lr: expected a number, got 'fast'"),
        ({"optim": {"lr": False}}, "optim.lr: expected a number, got false"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: expected a number, got nan, which is not finite"),
        ({"optim": {"precision": "fp23"}}, "expected one of fp32, bf16, got 'fp23'; did you mean fp32?"),
        ({"logging": {"wandb": False}}, "put it in quotes"),
        ({"data": {"split": [1]}}, "data.split: expected a list of 3, each a number, got [1]"),
        ({"data": {"split": [1, "a", 0]}}, "data.split[1]: expected a number, got 'a'"),
        ({"data": {"corpora": [{"weight": 1}]}}, "data.corpora[0].path: missing; expected text"),
        ({"data": {"corpora": [{"path": "a", "wieght": 1}]}}, "data.corpora[0].wieght: no such key"),
        ({"data": {"corpora": [{"path": "a"}, 3]}}, "data.corpora[1]: expected a mapping of path, weight, got 3"),
        ({"stage": {"sample_prompts": "abc"}}, "stage.sample_prompts: expected a list of text, got 'abc'"),
        ([1], "the configuration: expected a mapping"),
    ],
)
def test_wrong_type_says_what_was_expected_and_given(values, message):
    (line,) = problems(from_dict, values)
    assert message in line


def test_all_problems_are_reported_at_once():
    lines = problems(load, ["optim.lrr=1", "model.num_layers=3.5", "data.split=[1]", "model.bias=maybe", "seed=true"])
    assert {line.partition(":")[0] for line in lines} == {
        "optim.lrr",
        "model.num_layers",
        "data.split",
        "model.bias",
        "seed",
    }
    lines = problems(load, ["foo", "model=gpt4"])
    assert len(lines) == 2


@pytest.mark.parametrize("overrides", [[], ["experiment=demo"], ["model=demo_modern", "stage.sample_prompts=['${x}']"]])
def test_dict_and_file_give_the_same_config_back(overrides, tmp_path):
    try:
        config = load(overrides)
    except ConfigError:  # a reference is resolved in overrides, but plain text in files
        config = dataclasses.replace(load(overrides[:-1]), run_name="${x}")
    assert from_dict(to_dict(config)) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    save(config, tmp_path / "config.yaml")
    assert read(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_edited_file_keeps_its_meaning(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optim:\n  lr: 1e-3\n")  # text, in YAML 1.1
    assert read(path).optim.lr == 1e-3
    path.write_text("optim:\n  lrr: 1\n")
    (line,) = problems(read, path)
    assert line == f"{path}: optim.lrr: no such key; did you mean optim.lr?"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_keys_are_refused_by_name_and_read_from_saved_configurations(old, new, tmp_path):
    assert new in fields() and old not in fields()
    section, name = old.split(".")
    value = {int: 3, float: 0.25}.get(fields()[new]) or get_args(fields()[new])[-1]
    assert problems(load, [f"{old}={value}"]) == [f"{old} is now {new}"]
    assert problems(from_dict, {section: {name: value}}) == [f"{old} is now {new}"]
    values = to_dict(load(["experiment=demo"]))
    values[section][name] = value
    del values[section][new.split(".")[1]]
    assert to_dict(from_saved(values))[section][new.split(".")[1]] == value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert read(tmp_path / "config.yaml") == from_saved(values)


# Configurations that try to run code. The marker must never appear.

TARGETS = ["os.system", "posix.system", "builtins.eval", "subprocess.run", "torch.hub.load", "torch.load", "numpy.load"]


def assert_refused(call, *arguments, marker: Path) -> None:
    problems(call, *arguments)
    assert not marker.exists()


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "marker"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("section", ["", "model", "data", "optim", "stage", "checkpoint", "logging", "parallel"])
def test_instantiate_keys_are_refused(target, section, marker):
    for extra in ({"_args_": ["touch marker"]}, {"_partial_": True}, {"_recursive_": True, "command": "touch marker"}):
        hostile = {"_target_": target, **extra}
        assert_refused(from_dict, {section: hostile} if section else hostile, marker=marker)
    assert "refused: a configuration cannot name code to run" in " ".join(problems(from_dict, hostile))


def test_nested_instantiate_keys_are_refused(marker):
    hostile = {"_target_": "os.system", "_args_": ["touch marker"]}
    for values in (
        {"data": {"corpora": [{"path": "a", **hostile}]}},
        {"data": {"corpora": [hostile]}},
        {"data": {"corpora": hostile}},
        {"run_name": hostile},
        {"optim": {"lr": hostile}},
        {"stage": {"sample_prompts": [hostile]}},
        {"model": {"attention_pattern": [[hostile]]}},
    ):
        assert_refused(from_dict, values, marker=marker)


@pytest.mark.parametrize(
    "override",
    [
        "model._target_=os.system",
        "+model._target_=os.system",
        "++_target_=os.system",
        "run_name={_target_:os.system,_args_:['touch marker']}",
        "data.corpora=[{path:a,_target_:os.system,_args_:['touch marker']}]",
        "run_name=${oc.env:HOME}",
        "run_name=${oc.env:NOPE,x}",
        "run_name=${oc.decode:x}",
        "run_name=${${run_name}:x}",
        "run_name=x${oc.create:{a:1}}",
        "run_name=${hydra:runtime.cwd}",
        "run_name=${marker:x}",
        "stage.sample_prompts=['${marker:x}']",
        "model=${marker:x}",
        "hydra.searchpath=[pkg://os]",
        "hydra/job_logging=x",
    ],
)
def test_command_line_cannot_run_code(override, marker):
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("marker", lambda _: marker.touch(), replace=True)
    try:
        assert_refused(load, [override], marker=marker)
    finally:
        OmegaConf.clear_resolver("marker")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch marker']",
        "run_name: !!python/object/apply:os.system ['touch marker']",
        "run_name: !!python/object/new:subprocess.Popen [['touch', 'marker']]",
        "run_name: !!python/name:os.system",
        "run_name: !!python/module:os",
        "run_name: !custom x",
        "_target_: os.system\n_args_: ['touch marker']",
        "run_name: [1\n",
        "run_name: \x00",
        "[" * 5000,
        "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
        "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nrun_name: [*g,*g,*g,*g,*g,*g,*g,*g,*g]",
        "data: &a\n  corpora: [*a]",
        "",
        "3",
    ],
)
def test_file_cannot_run_code(text, marker, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    save(Config(), tmp_path / "good.yaml")
    # As long as its text takes, and not what that stands for.
    assert cpu_seconds(problems, read, path) < 500 * cpu_seconds(read, tmp_path / "good.yaml")
    assert not marker.exists()
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read(path)


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    for name in ("binary", "absent", "."):
        assert str(tmp_path / name) in problems(read, tmp_path / name)[0]


def test_composing_leaves_no_trace(marker):
    load([])
    assert list(marker.parent.iterdir()) == []


def test_wrong_key_is_reported_before_anything_heavy_is_imported():
    code = (
        "import sys; from megagpt.__main__ import main; from megagpt.errors import ConfigError\n"
        "try: main(['optim.lrr=1'])\n"
        "except ConfigError: print({'torch', 'megatron', 'transformers', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
