"""The mesh of a configuration: which axis takes the rest, and what is refused."""

import jax
import pytest

from wsm_jax import UsageError
from wsm_jax.config import Config, MeshConfig, config_hash, config_id, from_dict, to_dict
from wsm_jax.parallel import mesh


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"fsdp": -1}, (1, 8, 1, 1)),
        ({"expert": 2, "tensor": -1}, (1, 1, 2, 4)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"data": 2, "fsdp": 2, "expert": 2}, (2, 2, 2, 1)),
    ],
)
def test_data_takes_the_rest_unless_another_axis_does(given, sizes):
    assert tuple(mesh.axes(MeshConfig(**given), 8).values()) == sizes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fsdp": -1, "tensor": -1}, "mesh.fsdp and mesh.tensor are both -1; only one axis can take the rest"),
        ({"fsdp": 3}, "mesh.fsdp=3 takes 3 devices, which is not a divisor of the 8 there are"),
        ({"fsdp": 16}, "mesh.fsdp=16 takes 16 devices, which is not a divisor of the 8 there are"),
        ({"data": 2, "fsdp": 2}, "mesh.data=2 x mesh.fsdp=2 takes 4 devices, which is not as many as the 8 there are"),
        ({"data": 1}, "mesh.data=1 takes 1 devices, which is not as many as the 8 there are"),
        ({"tensor": 0}, "mesh.tensor is 0; it must be at least 1, or -1 for the devices that are left"),
        ({"data": -2}, "mesh.data is -2; it must be at least 1, or -1 for the devices that are left"),
    ],
)
def test_what_does_not_make_up_the_devices_is_refused(given, message):
    with pytest.raises(UsageError) as error:
        mesh.axes(MeshConfig(**given), 8)
    assert str(error.value) == message


def test_an_evaluation_takes_what_the_devices_here_allow():
    one = dict.fromkeys(("data", "fsdp", "expert", "tensor"), 1)
    here = jax.device_count()
    assert dict(mesh.like(MeshConfig(fsdp=8 * here, tensor=3)).shape) == {**one, "fsdp": here}
    assert dict(mesh.like(MeshConfig(fsdp=-1)).shape) == {**one, "fsdp": here}
    assert dict(mesh.like(MeshConfig()).shape) == {**one, "data": here}


def test_the_mesh_identifies_nothing():
    config = Config(mesh=MeshConfig(fsdp=4))
    assert config_id(config) == config_id(Config())
    assert config_hash(config) != config_hash(Config())
    before = to_dict(Config())
    del before["mesh"]
    assert from_dict(before) == Config()
