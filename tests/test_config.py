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
    ModelConfig,
    OptimizerConfig,
    config_hash,
    flat_fields,
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
    ["", "100", "steps", "1.5.2steps", "-3steps", "nansteps", "1e400steps", "1e400tok", "10 epochs", "2mtok", 100],
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


def test_configurations_do_not_share_their_groups():
    first = Config()
    first.model.layers += 1
    assert Config().model.layers == first.model.layers - 1


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
