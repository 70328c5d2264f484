"""The configuration: durations, dictionaries, the hash, one line of help for every field."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    check_values,
    config_hash,
    config_id,
    flat_fields,
    free_fields,
    from_dict,
    parse_duration,
    parse_list,
    to_dict,
)
from wsm_jax.errors import UsageError

# --- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("100steps", 100),
        ("1step", 1),
        ("0steps", 0),
        ("1e3steps", 1000),
        ("2.5e2 steps", 250),
        (" 7steps ", 7),
        ("1000tok", 1),
        ("1001tok", 2),
        ("1tok", 1),
        ("0tok", 0),
        ("64ktok", 64),
        ("2.5Mtok", 2500),
        (".5Mtok", 500),
        ("2Btok", 2_000_000),
        ("1e-3Btok", 1000),
        ("1.5Ttok", 1_500_000_000),
        ("1run", 400),
        ("0.1run", 40),
        ("2e-2run", 8),
        ("0.004run", 2),
        ("0.003run", 1),
        ("0.001run", 0),
    ],
)
def test_durations_in_steps_tokens_and_shares_of_the_run(text, steps):
    """At 1,000 tokens an update and 400 updates: tokens round up to whole updates, shares round to the nearest."""
    assert parse_duration(text, tokens_per_step=1000, run_steps=400) == steps


@given(updates=st.integers(1, 10**6), tokens_per_step=st.integers(1, 2**22))
def test_a_whole_number_of_updates_in_tokens_is_that_number(updates, tokens_per_step):
    """Whatever the decimal form rounds to: 1.024ktok at 1,024 tokens an update is one update, not two."""
    tokens = updates * tokens_per_step
    for text in (f"{tokens}tok", f"{tokens / 1e3!r}ktok", f"{tokens / 1e6!r}Mtok", f"{tokens / 1e9!r}Btok"):
        assert parse_duration(text, tokens_per_step=tokens_per_step, run_steps=None) == updates, text


@pytest.mark.parametrize(
    "text",
    ["", "100", "steps", "1.5.2steps", "-3steps", "nansteps", "1e400steps", "1e400tok", "10 epochs", "2mtok", 100]
    + ["1e308Ttok", "1e308run"],
)
def test_what_is_no_duration_names_the_field_and_the_text(text):
    with pytest.raises(UsageError, match=r"log\.interval=.*not a duration.*100steps"):
        parse_duration(text, tokens_per_step=1000, run_steps=400, field="log.interval")


def test_part_of_a_step_is_no_duration():
    with pytest.raises(UsageError, match=r"log\.interval='1\.5steps'.*whole number"):
        parse_duration("1.5steps", tokens_per_step=1000, run_steps=400, field="log.interval")


def test_the_run_itself_cannot_be_a_share_of_the_run():
    with pytest.raises(UsageError, match=r"duration='0\.5run' cannot be a share"):
        _ = Config(duration="0.5run").steps


def test_a_run_is_no_longer_than_its_counter_of_updates():
    assert Config(duration="2147483647steps").steps == 2**31 - 1
    for text in ("2147483648steps", "1e30steps", "1e200Ttok"):
        with pytest.raises(UsageError, match=f"^duration='{text}' is .* steps; a run has at most 2,147,483,647"):
            _ = Config(duration=text).steps


def test_tokens_of_a_step_come_from_batch_and_context():
    config = Config(duration="1Mtok", batch_size=10, model=ModelConfig(context=1000))
    assert config.tokens_per_step == 10_000
    assert config.steps == 100
    assert config.duration_steps("log.interval", "0.25run") == 25
    assert config.duration_steps("log.interval", "20001tok") == 3


@pytest.mark.parametrize(
    ("text", "items"), [("", []), (" , ", []), ("a", ["a"]), ("0.5run, 0.75run,", ["0.5run", "0.75run"])]
)
def test_comma_separated_lists(text, items):
    assert parse_list(text) == items


# --- dictionaries ----------------------------------------------------------------------------------------------------


def changed() -> Config:
    """A configuration in which no field has its default."""
    config = Config()
    for name, (value, _) in flat_fields(config).items():
        set_field(config, name, other(value))
    return config


def other(value):
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else value + "x"


def set_field(config, name, value):
    *groups, field = name.split(".")
    for group in groups:
        config = getattr(config, group)
    setattr(config, field, value)


@pytest.mark.parametrize("config", [Config(), changed()])
def test_a_configuration_survives_json(config):
    assert to_dict(from_dict(json.loads(json.dumps(to_dict(config))))) == to_dict(config)


def test_fields_that_an_older_file_lacks_get_their_defaults():
    config = from_dict({"optimizer": {"name": "lion"}})
    assert config == Config(optimizer=OptimizerConfig(name="lion"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"duratoin": "5steps"}, r"config\.duratoin.*duration"),
        ({"model": {"depth": 3}}, r"config\.model\.depth.*layers"),
        ({"model": None}, r"config\.model is None"),
        ([], r"config is \[\]"),
    ],
)
def test_an_unknown_field_is_named_beside_the_known_ones(values, message):
    with pytest.raises(UsageError, match=message):
        from_dict(values)


WRONG = {
    str: [5, None, True, ["5steps"], 2.0],
    int: ["5", None, True, [5], 5.0, 2**63, 10**5000],
    float: ["0.1", None, True, [0.1], float("nan")],
    bool: ["true", None, 1, [True]],
}


@pytest.mark.parametrize("name", flat_fields(Config()))
def test_a_value_of_another_type_is_refused_in_every_field(name):
    kind = type(flat_fields(Config())[name][0])
    for value in WRONG[kind]:
        if name == "model.remat" and value is True:  # what earlier versions saved
            continue
        config = Config()
        set_field(config, name, value)
        with pytest.raises(UsageError, match=rf"^{name} is .*; it must ") as error:
            from_dict(to_dict(config))
        assert len(str(error.value)) < 200


def test_a_whole_number_will_do_for_a_number_and_stays_one():
    config = from_dict({"optimizer": {"peak_lr": 1}})
    assert json.dumps(config.optimizer.peak_lr) == "1"  # or the hash of a run would change when it is read


@pytest.mark.parametrize("value", [None, 5, [1, 2], {"layers": 2}, DataConfig])
def test_what_is_no_group_is_refused_in_the_place_of_one(value):
    config = Config()
    config.data = value
    with pytest.raises(UsageError, match=r"^data is .*, not a group of fields"):
        check_values(config)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("data.workers", 10**9, "at least 0 and be at most 4096"),
        ("checkpoint.resume_keep", 0, "at least 1"),
    ],
)
def test_a_whole_number_out_of_its_range_is_refused(name, value, words):
    config = Config()
    set_field(config, name, value)
    with pytest.raises(UsageError, match=f"^{name} is {value}; it must be {words}$"):
        check_values(config)


def test_configurations_do_not_share_their_groups():
    first = Config()
    first.model.context += 1
    assert Config().model.context == first.model.context - 1


# --- the hash and the fields -----------------------------------------------------------------------------------------


def test_the_hash_is_twelve_hexadecimal_digits_and_equal_for_equal_configurations():
    digits = config_hash(Config())
    assert len(digits) == 12
    assert int(digits, 16) >= 0
    assert config_hash(copy.deepcopy(changed())) == config_hash(changed())


def test_the_hash_does_not_depend_on_the_order_of_a_file():
    def reverse(node):
        return {k: reverse(node[k]) for k in reversed(node)} if isinstance(node, dict) else node

    values = reverse(to_dict(changed()))
    assert list(values) != list(to_dict(Config()))
    assert config_hash(from_dict(values)) == config_hash(changed())


def test_the_hash_changes_with_every_single_field():
    hashes = {config_hash(Config())}
    for name, (value, _) in flat_fields(Config()).items():
        config = Config()
        set_field(config, name, other(value))
        hashes.add(config_hash(config))
    assert len(hashes) == 1 + len(flat_fields(Config()))


def test_the_identity_changes_with_every_field_that_changes_what_is_computed_and_with_no_other():
    own = {config_id(Config())}
    for name, (value, _) in flat_fields(Config()).items():
        config = Config()
        set_field(config, name, other(value))
        assert (config_id(config) == config_id(Config())) == (name in free_fields()), name
        own.add(config_id(config))
    assert len(own) == 1 + len(flat_fields(Config())) - len(free_fields())
    assert all(len(digits) == 12 and int(digits, 16) >= 0 for digits in own)


@pytest.mark.parametrize(
    ("field", "one", "same", "another"),
    [
        ("source", "text:/a/x.txt", "text:/b/{y,z}/*.md", "stdlib"),
        ("source", "text:/a=0.7,stdlib=0.3", "text:b=0.7,stdlib=0.3", "text:/a=0.6,stdlib=0.4"),
        ("source", "text:/a=b/x.txt", "text:/a=c/x.txt", "tfds:a"),
        ("source", "tfds:news@/data", "tfds:news@/elsewhere", "tfds:olds@/data"),
        ("source", "hf:/data/books:train", "hf:~/books:train", "hf:owner/books:train"),
        ("switch_source", "text:/a", "text:/b", "text:/a,stdlib"),
        ("tokenizer", "/a/tokenizer.json", "b", "bpe:4096"),
        ("tokenizer", "bpe:4096", "bpe:4096", "bpe:4097"),
    ],
)
def test_the_identity_knows_no_local_path(field, one, same, another):
    digits = [config_id(Config(data=DataConfig(**{field: text}))) for text in (one, same, another)]
    assert digits[0] == digits[1] != digits[2]


def test_every_field_is_flat_once_with_its_value_and_one_line_of_help():
    fields = flat_fields(Config())

    def leaves(node):
        return sum(leaves(value) if isinstance(value, dict) else 1 for value in node.values())

    assert len(fields) == leaves(to_dict(Config()))
    assert fields["optimizer.peak_lr"][0] == OptimizerConfig().peak_lr
    assert list(fields)[:2] == ["duration", "batch_size"]
    for name, (_, text) in fields.items():
        assert len(text) > 10 and "\n" not in text, name


def test_no_field_is_a_union_or_a_list_which_the_command_line_cannot_override():
    def check(node):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                check(value)
            else:
                assert field.type in (str, int, float, bool), field.name
                assert type(value) is field.type, field.name

    check(Config())


def test_a_field_that_had_another_form_is_read_and_hashed_as_it_was():
    saved = to_dict(Config())
    saved["model"]["remat"] = True
    config = from_dict(saved)
    assert to_dict(config)["model"]["remat"] == "full"
    assert config_hash(config) == "b8f52f733735"  # of the version in which it was a boolean


def test_fields_that_came_later_leave_published_hashes_as_they_are_until_they_are_used():
    """Against the hashes in the committed results, which were made without those fields."""
    files = sorted((Path(__file__).parent.parent / "results").rglob("seed-*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        config = from_dict(result["config"])
        assert config_hash(config) == result["config_hash"]
        config.averaging.names = "ema"
        assert config_hash(config) != result["config_hash"]
