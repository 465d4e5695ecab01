"""gfnx on the hypergrid, as its baselines train it: `python experiments/bench/peers/gfnx_bench.py --objective tb`.

One-hot input, MLP of 2 × 256 with LeakyReLU, uniform P_B (zero backward logits); in DB and SubTB the log-flow is one output
more of the same network, as in the baselines. Iterations run in `lax.fori_loop` inside one compiled function with donated
state. Metrics and logging are left out. gfnx always takes n·H + 1 steps, pads included: its figures do not depend on how
long episodes are.
"""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
from measure import arguments, check_rewards, distance_of, emit, header, load, log_z, per_second, race  # type: ignore[import-not-found]

ARGS = arguments("gfnx")
# XLA makes as many threads as it may use CPUs, and counts them when it is imported.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.threads])
os.environ["JAX_PLATFORMS"] = "cpu"

import equinox as eqx  # type: ignore[import-not-found]  # noqa: E402
import gfnx  # type: ignore[import-not-found]  # noqa: E402
import jax  # type: ignore[import-not-found]  # noqa: E402
import jax.numpy as jnp  # type: ignore[import-not-found]  # noqa: E402
import optax  # type: ignore[import-not-found]  # noqa: E402


def make_params(args: argparse.Namespace, env: Any) -> tuple[Any, Any]:
    """({net, logZ}, the rest of the net); with `--weights` the policy begins there, and the log-flow output afresh."""
    inputs, outs = args.ndim * args.height, env.action_space.n + int(args.objective != "tb")
    net = eqx.nn.MLP(inputs, outs, 256, 2, jax.nn.leaky_relu, key=jax.random.PRNGKey(args.seed))
    z = 0.0
    if args.weights:
        z, layers = log_z(args.ndim, args.height, args.r0), load(args.weights)
        for k, (w, b) in enumerate(layers):
            # the last layer may have a row more than the file: the log-flow
            weight, bias = net.layers[k].weight.at[: b.size].set(w.T), net.layers[k].bias.at[: b.size].set(b)
            net = eqx.tree_at(lambda n, k=k: (n.layers[k].weight, n.layers[k].bias), net, (weight, bias))
    arrays, static = eqx.partition(net, eqx.is_array)
    return {"net": arrays, "logZ": jnp.array(z)}, static


def outputs(net: Any, obs: Any, env: Any) -> dict[str, Any]:
    """Logits and, where the network has it, log-flow of one observation."""
    logits = net(obs)
    actions = env.action_space.n
    none = jnp.zeros((env.backward_action_space.n,), jnp.float32)
    return {"forward_logits": logits[:actions], "log_flow": logits[actions:].sum(), "backward_logits": none}


def chosen(logits: Any, invalid: Any, action: Any) -> Any:
    """Log-probability of `action` among the valid ones."""
    log_probs = jax.nn.log_softmax(gfnx.utils.mask_logits(logits, invalid), axis=-1)
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1).squeeze(-1)


def trajectory_log_probs(model: Any, data: Any, env: Any, env_params: Any) -> tuple[Any, Any, Any]:
    """(log P_F, log P_B + log R of the step, log-flow) of each step, pads zero; [B, T], [B, T], [B, T + 1]."""
    out = jax.vmap(jax.vmap(model))(data.obs)
    before, after = (jax.tree.map(lambda x, part=part: x[:, part], data.state) for part in (slice(None, -1), slice(1, None)))
    over_time = {"in_axes": (1, None), "out_axes": 1}
    invalid = jax.vmap(env.get_invalid_mask, **over_time)(data.state, env_params)
    log_pf = chosen(out["forward_logits"], invalid, data.action)[:, :-1]
    undo = jax.vmap(env.get_backward_action, in_axes=(1, 1, 1, None), out_axes=1)
    back = undo(before, data.action[:, :-1], after, env_params)
    invalid_back = jax.vmap(env.get_invalid_backward_mask, **over_time)(after, env_params)
    log_pb = chosen(out["backward_logits"][:, 1:], invalid_back, back)
    pad = data.pad[:, :-1]
    log_pb = jnp.where(pad, 0.0, log_pb + data.log_gfn_reward[:, :-1])
    return jnp.where(pad, 0.0, log_pf), log_pb, jnp.where(data.pad, 0.0, out["log_flow"])


def tb_loss(params: Any, model: Any, data: Any, env: Any, env_params: Any) -> Any:
    log_pf, log_pb, _ = trajectory_log_probs(model, data, env, env_params)
    return optax.losses.squared_error(params["logZ"] + log_pf.sum(1), log_pb.sum(1)).mean()


def db_loss(params: Any, model: Any, data: Any, env: Any, env_params: Any) -> Any:
    steps = gfnx.utils.split_traj_to_transitions(data)
    out, following = jax.vmap(model)(steps.obs), jax.vmap(model)(steps.next_obs)
    log_pf = chosen(out["forward_logits"], env.get_invalid_mask(steps.state, env_params), steps.action)
    back = env.get_backward_action(steps.state, steps.action, steps.next_state, env_params)
    log_pb = chosen(following["backward_logits"], env.get_invalid_backward_mask(steps.next_state, env_params), back)
    target = jnp.where(steps.done, steps.log_gfn_reward, log_pb + following["log_flow"])
    return optax.l2_loss(jnp.where(steps.pad, 0.0, log_pf + out["log_flow"]), jnp.where(steps.pad, 0.0, target)).mean()


def subtb_loss(params: Any, model: Any, data: Any, env: Any, env_params: Any, decay: float = 0.9) -> Any:
    log_pf, log_pb, log_flow = trajectory_log_probs(model, data, env, env_params)
    steps = log_pf.shape[1]

    def trajectory(log_pf: Any, log_pb: Any, log_flow: Any, done: Any, pad: Any) -> Any:
        def piece(i: Any, j: Any) -> Any:
            def error() -> Any:
                inside = jnp.logical_and(i <= jnp.arange(steps), jnp.arange(steps) < j)
                weight = jnp.power(decay, j - i)
                end = jnp.where(done[j - 1], 0.0, log_flow[j])
                forward, backward = log_flow[i] + (log_pf * inside).sum(), end + (log_pb * inside).sum()
                return weight * optax.losses.squared_error(forward, backward), weight

            return jax.lax.cond(pad[j - 1], lambda: (0.0, 0.0), error)

        errors, weights = jax.vmap(piece)(*jnp.triu_indices(steps + 1, k=1))
        return errors.sum() / weights.sum()

    return jax.vmap(trajectory)(log_pf, log_pb, log_flow, data.done[:, :-1], data.pad[:, :-1]).mean()


LOSSES = {"tb": tb_loss, "db": db_loss, "subtb": subtb_loss}


def main(args: argparse.Namespace) -> None:
    row = header("gfnx", version("gfnx"), args)
    if args.objective == "fm":
        emit(row | {"error": "gfnx has no flow matching"})
        return
    env = gfnx.HypergridEnvironment(gfnx.GeneralHypergridRewardModule(args.r0, 0.5, 2.0), dim=args.ndim, side=args.height)
    env_params = env.init(jax.random.PRNGKey(1))
    if args.height**args.ndim <= 1_000_000:
        every_cell = env.get_all_states(env_params)
        check_rewards(np.asarray(env.reward_module.reward(every_cell, env_params)), args.ndim, args.height, args.r0)
    params, static = make_params(args, env)
    row["parameters"] = sum(x.size for x in jax.tree.leaves(params["net"]))
    rates = {"net": optax.adam(args.lr), "logZ": optax.adam(args.lr_z)}
    optimizer = optax.multi_transform(rates, {"net": "net", "logZ": "logZ"})
    loss = LOSSES[args.objective]

    def model_of(net: Any) -> Any:
        return lambda obs: outputs(eqx.combine(net, static), obs, env)

    def rollout(key: Any, net: Any) -> tuple[Any, Any]:
        def policy(_: Any, obs: Any, net: Any) -> tuple[Any, Any]:
            out = jax.vmap(model_of(net))(obs)
            return out["forward_logits"], out

        return gfnx.utils.forward_rollout(key, args.batch, policy, net, env, env_params)

    def train(i: Any, carry: Any) -> Any:
        key, sampling = jax.random.split(carry["key"])
        data, info = rollout(sampling, carry["params"]["net"])
        grads = jax.grad(lambda p: loss(p, model_of(p["net"]), data, env, env_params))(carry["params"])
        updates, moments = optimizer.update(grads, carry["moments"], carry["params"])
        length = carry["length"] + info["trajectory_length"].mean()
        return {"key": key, "params": optax.apply_updates(carry["params"], updates), "moments": moments, "length": length}

    def sample(i: Any, carry: Any) -> Any:
        key, sampling = jax.random.split(carry["key"])
        _, info = rollout(sampling, carry["params"]["net"])
        return carry | {"key": key, "length": carry["length"] + info["trajectory_length"].mean()}

    body = sample if args.mode == "sample" else train
    carry = {"key": jax.random.PRNGKey(args.seed), "params": params, "moments": optimizer.init(params)}
    carry["length"] = jnp.zeros(())
    begun = perf_counter()
    loop = jax.jit(lambda carry, n: jax.lax.fori_loop(0, n, body, carry), donate_argnums=0).lower(carry, 1).compile()
    row["compile_s"] = perf_counter() - begun

    def run(n: int) -> float:
        nonlocal carry
        carry = jax.block_until_ready(loop(carry | {"length": jnp.zeros(())}, n))
        return float(carry["length"]) / n

    def policy_now() -> Any:
        logits = jax.vmap(model_of(carry["params"]["net"]))(env.get_obs(every_cell, env_params))["forward_logits"]
        return np.asarray(jax.nn.softmax(gfnx.utils.mask_logits(logits, env.get_invalid_mask(every_cell, env_params))))

    if args.mode == "race":
        for reached in race(run, distance_of(policy_now, args), args.seconds):
            emit(row | reached)
        emit(row)
    elif args.mode == "speed":
        emit(row | per_second(run, args.seconds, "iterations_per_s"))
    else:
        emit(row | per_second(run, args.seconds, "trajectories_per_s", each=args.batch))


if __name__ == "__main__":
    main(ARGS)
