"""restore: variables of a module of somebody else's, from whatever a training loop saved with Orbax, on meshes; what is not there, or there twice, is named."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as v1
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sarathi_jax import restore
from sarathi_jax.errors import ConfigError, ModelError, ModelNotFoundError
from sarathi_jax.sharding.mesh import make_mesh


def axes(*names: str | None) -> dict[str, Any]:
    return {"out_sharding": names, "eager_sharding": False}


class Net(nnx.Module):
    """An embedding, layers in a list, statistics, a count, and dropout with a generator of its own."""

    def __init__(self, seed: int, num_layers: int = 2, dtype: Any = jnp.float32) -> None:
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(16, 8, param_dtype=dtype, rngs=rngs, embedding_metadata=axes("vocab", None))
        self.layers = nnx.List(
            [
                nnx.Linear(8, 8, param_dtype=dtype, rngs=rngs, kernel_metadata=axes(None, "mlp"))
                for _ in range(num_layers)
            ]
        )
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.num_seen = nnx.BatchStat(jnp.full((), seed, jnp.int32))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def save(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def save_step(path: Path, step: int = 3) -> Path:
    """As a training loop does: the model and its optimizer, side by side."""
    net = Net(1)
    optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
    with ocp.CheckpointManager(path) as manager:
        items = {"model": nnx.state(net, nnx.Not(nnx.RngState)), "optimizer": nnx.state(optimizer)}
        manager.save(
            step, args=ocp.args.Composite(**{name: ocp.args.StandardSave(each) for name, each in items.items()})
        )
    return path


def train_state() -> dict[str, Any]:
    net = Net(1)
    optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
    return {"params": nnx.to_pure_dict(nnx.state(net)), "opt_state": nnx.to_pure_dict(nnx.state(optimizer)), "step": 7}


def variables(net: Net) -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.state(net, nnx.Not(nnx.RngState)))
    return {".".join(map(str, keys)): variable[...] for keys, variable in flat}


def check_is_net(got: Net, seed: int = 1) -> None:
    expected = variables(Net(seed))
    assert variables(got).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(variables(got)[name], value, strict=True, err_msg=name)


SAVED: dict[str, Any] = {
    "a state": lambda path: save(path, nnx.state(Net(1))),
    "a pure dict": lambda path: save(path, nnx.to_pure_dict(nnx.state(Net(1)))),
    "a train state": lambda path: save(path, train_state()),
    "an item of a step": lambda path: save_step(path) / "3" / "model",
    "a step": lambda path: save_step(path) / "3",
    "a run of one step": save_step,
    "the newer API": lambda path: v1.save(path, {"params": nnx.to_pure_dict(nnx.state(Net(1)))}) or path,
    "the older checkpointer": lambda path: ocp.PyTreeCheckpointer().save(path, {"model": nnx.state(Net(1))}) or path,
}


@pytest.mark.parametrize("how", SAVED)
def test_whatever_way_it_was_saved_the_module_is_found(tmp_path: Path, how: str) -> None:
    check_is_net(restore(SAVED[how](tmp_path / "saved"), Net(0)))


def test_the_mesh_and_the_modules_own_axes_say_where_variables_are(tmp_path: Path) -> None:
    mesh = make_mesh({"tensor": 4})
    got = restore(save(tmp_path / "net", nnx.state(Net(1))), Net(0), mesh=mesh)
    check_is_net(got)
    assert got.embed.embedding[...].sharding == NamedSharding(mesh, P("tensor", None))
    assert got.layers[1].kernel[...].sharding == NamedSharding(mesh, P(None, "tensor"))
    assert got.layers[1].bias[...].sharding.is_fully_replicated  # pyright: ignore[reportOptionalSubscript]


def test_a_mesh_and_rules_of_ones_own(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("rows", "columns"))
    path = save(tmp_path / "net", nnx.state(Net(1)))
    got = restore(path, Net(0), mesh=mesh, rules={"vocab": ("rows", "columns"), "mlp": "columns"})
    assert got.embed.embedding[...].sharding == NamedSharding(mesh, P(("rows", "columns"), None))
    assert got.layers[0].kernel[...].sharding == NamedSharding(mesh, P(None, "columns"))
    with pytest.raises(ConfigError, match=r"embed\.embedding: logical axis 'vocab' must be in the rules, got only mlp"):
        restore(path, Net(0), mesh=mesh, rules={"mlp": "columns"})


def test_a_module_without_values_needs_none(tmp_path: Path) -> None:
    linear = nnx.Linear(3, 5, rngs=nnx.Rngs(1))
    path = save(tmp_path / "linear", nnx.state(linear))
    got = restore(path, nnx.eval_shape(lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0))))
    np.testing.assert_array_equal(got(jnp.ones((2, 3))), linear(jnp.ones((2, 3))))
    with pytest.raises(
        ModelError, match=r"dropout\.rngs\.count is the state of a random number generator, .* got none: m"
    ):
        restore(path, nnx.eval_shape(lambda: Net(0)))


def test_generators_and_the_module_that_was_passed_stay_as_they_are(tmp_path: Path) -> None:
    mine = Net(0)
    got = restore(save(tmp_path / "net", nnx.state(Net(1))), mine)
    check_is_net(mine, seed=0)
    assert (got.dropout.rngs.key[...] == mine.dropout.rngs.key[...]).all()  # pyright: ignore[reportOptionalMemberAccess]


def test_values_take_the_modules_dtype(tmp_path: Path) -> None:
    got = restore(save(tmp_path / "net", nnx.state(Net(1))), Net(0, dtype=jnp.bfloat16))
    expected = Net(1).layers[0].kernel[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(got.layers[0].kernel[...], expected, strict=True)


def test_moments_of_an_optimizer_are_not_taken_for_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"optimizer must hold all variables of the module, got no embed\.embedding, "):
        restore(save_step(tmp_path / "run") / "3" / "optimizer", Net(0))


def test_weights_that_are_there_twice_are_told_apart_by_their_key(tmp_path: Path) -> None:
    path = save(tmp_path / "net", {"params": nnx.state(Net(1)), "average": nnx.state(Net(2))})
    with pytest.raises(
        ModelError, match=r"once, got them at 'average', at 'params': pass the path of that checkpoint, or at"
    ):
        restore(path, Net(0))
    check_is_net(restore(path, Net(0), at="average"), seed=2)
    deep = save(tmp_path / "deep", {"state": {"model": nnx.state(Net(1)), "step": 3}})
    with pytest.raises(
        ModelError, match=r"got no embed\.embedding, .* and 5 more at .*, which has .*: restore the module"
    ):
        restore(deep, Net(0))
    check_is_net(restore(deep, Net(0), at="state.model"))


def test_several_steps_are_named(tmp_path: Path) -> None:
    save_step(tmp_path / "run", 3)
    save_step(tmp_path / "run", 5)
    with pytest.raises(ModelError, match=r"once, got them in 3/model, in 5/model: pass the path of that checkpoint"):
        restore(tmp_path / "run", Net(0))
    check_is_net(restore(tmp_path / "run" / "5", Net(0)))


def test_another_module_is_told_by_its_variables(tmp_path: Path) -> None:
    path = save(tmp_path / "net", nnx.state(Net(1)))
    with pytest.raises(
        ModelError, match=r"got no layers\.2\.bias, layers\.2\.kernel at its root, which has .*: restore the"
    ):
        restore(path, Net(0, num_layers=3))
    with pytest.raises(
        ModelError, match=r"net: the arrays must be the module's variables, got extra layers\.1\.bias; extra"
    ):
        restore(path, Net(0, num_layers=1))
    other = Net(0)
    other.embed = nnx.Embed(16, 9, rngs=nnx.Rngs(0))
    other.norm.mean = nnx.BatchStat(jnp.zeros(8, jnp.int32))
    message = (
        r"got embed\.embedding\[16, 8\] in place of \[16, 9\]; norm\.mean of float32 in place of int32: restore the"
    )
    with pytest.raises(ModelError, match=message):
        restore(path, other)


def test_a_place_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"nowhere must be an Orbax checkpoint of a tree, or a folder of some, got"
    ):
        restore(tmp_path / "nowhere", Net(0))


def test_what_was_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    path = save_step(tmp_path / "run") / "3"
    path.rename(path.with_name("3.orbax-checkpoint-tmp-0"))
    with pytest.raises(
        ModelNotFoundError, match=r"run must be an Orbax checkpoint of a tree, or a folder of some, got no"
    ):
        restore(tmp_path / "run", Net(0))


def test_a_module_that_was_made_on_a_mesh_can_be_restored_without_it(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("mlp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        linear = nnx.Linear(3, 8, rngs=nnx.Rngs(1), kernel_metadata={"out_sharding": (None, "mlp")})
    assert len(linear.kernel[...].sharding.device_set) == 8
    path = save(tmp_path / "linear", nnx.state(linear))
    got = restore(path, linear, rules={"mlp": "tensor"})
    assert got.kernel[...].devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(got.kernel[...], linear.kernel[...])
