"""The loss, the update rules and the moving average against NumPy and Keras, and the effect of every setting."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from shiftvit.config import OptimizerConfig, ScheduleConfig, TrainConfig
from shiftvit.model.network import ShiftViT
from shiftvit.training.averages import use_averaged_weights
from shiftvit.training.loss import SmoothedCrossentropy, Top1, balance_classes
from shiftvit.training.optimizer import build_optimizer
from shiftvit.training.schedule import WarmUpCosine, WarmUpLinear
from tensors import draw_normal, set_random_weights, to_numpy

Arrays = dict[str, np.ndarray]


def make_config(ema: float | None = None, **rule: Any) -> TrainConfig:
    """Returns a configuration without warm-up, so the first step has the full learning rate."""
    return TrainConfig(optimizer=OptimizerConfig(**rule), schedule=ScheduleConfig(warmup=0), ema=ema)


@pytest.fixture
def model() -> ShiftViT:
    model = ShiftViT((16, 16, 3), num_classes=5, embed_dim=24, depths=(1, 1))
    set_random_weights(model)
    return model


def get_values(model: ShiftViT) -> Arrays:
    return {variable.path: to_numpy(variable).astype(np.float64) for variable in model.trainable_variables}


def copy_model(model: ShiftViT) -> ShiftViT:
    twin = ShiftViT.from_config(model.get_config())
    twin.set_weights(model.get_weights())
    return twin


def check_values(model: ShiftViT, expected: Arrays, rtol: float = 0.0, atol: float = 0.0) -> None:
    for path, value in get_values(model).items():
        np.testing.assert_allclose(value, expected[path], rtol=rtol, atol=atol, err_msg=path)


def draw_gradients(model: ShiftViT, seed: int = 0) -> Arrays:
    variables = model.trainable_variables
    return {v.path: draw_normal(*v.shape, seed=seed + index) for index, v in enumerate(variables)}


def compute_changes(model: ShiftViT, settings: TrainConfig, gradients: Arrays) -> Arrays:
    """Returns what the first step adds to each variable."""
    before, optimizer = get_values(model), build_optimizer(settings, total_steps=100)
    optimizer.build(model.trainable_variables)
    apply_gradients(optimizer, model, gradients)
    return {path: value - before[path] for path, value in get_values(model).items()}


def apply_gradients(optimizer: Any, model: ShiftViT, gradients: Arrays) -> None:
    variables = model.trainable_variables
    optimizer.apply([keras.ops.convert_to_tensor(gradients[v.path]) for v in variables], variables)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_only_the_head_learns_during_its_first_steps(model: ShiftViT, name: str, clipnorm: float | None) -> None:
    """The other weights neither move nor decay until then, and all weights move afterwards."""
    rule = {"name": name, "weight_decay": 0.1, "adam_weight_decay": 0.1, "stage_decay": 0.5, "clipnorm": clipnorm}
    settings, first = make_config(**rule), get_values(model)
    optimizer = build_optimizer(settings, total_steps=100, head_steps=2)
    optimizer.build(model.trainable_variables)
    rows = []
    for seed in range(3):
        apply_gradients(optimizer, model, draw_gradients(model, seed))
        rows.append(get_values(model))
    for path in first:
        moves = [bool((row[path] != before[path]).any()) for before, row in zip([first, *rows], rows, strict=False)]
        assert moves == [path.startswith("head/")] * 2 + [True], path


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch captures a step as a CUDA graph")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_step_makes_no_tensor_of_a_python_number(model: ShiftViT, name: str) -> None:
    """On a GPU that is a copy from the host, which a CUDA graph cannot capture."""
    import torch
    from torch.overrides import TorchFunctionMode

    made: list[Any] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.from_numpy):
                made.extend(value for value in args[:1] if not isinstance(value, torch.Tensor))
            return func(*args, **(kwargs or {}))

    settings = make_config(name=name, weight_decay=0.1, stage_decay=0.5, clipnorm=1.0, ema=0.9)
    optimizer = build_optimizer(settings, total_steps=100, head_steps=2)
    optimizer.build(model.trainable_variables)
    gradients = [torch.from_numpy(draw_gradients(model)[v.path]) for v in model.trainable_variables]
    with torch.no_grad(), Recorder():
        torch.as_tensor(5)
        optimizer.step(gradients, model.trainable_variables, torch.ones(()))
    assert made == [5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_loss_matches_keras_on_one_hot_targets(smoothing: float) -> None:
    logits, labels = 4 * draw_normal(8, 5), np.arange(8) % 5
    one_hot = np.eye(5, dtype=np.float32)[labels]
    reference = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    loss = SmoothedCrossentropy(smoothing)
    expected = to_numpy(reference(one_hot, logits))
    for shape in ((8,), (8, 1)):
        np.testing.assert_allclose(to_numpy(loss(labels.reshape(shape), logits)), expected, rtol=1e-5)
    twin = SmoothedCrossentropy.from_config(loss.get_config())
    assert twin.get_config() == loss.get_config()
    assert twin.label_smoothing == smoothing


def test_loss_stays_finite_for_large_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    loss = to_numpy(SmoothedCrossentropy(0.1)(np.array([1]), logits))
    np.testing.assert_allclose(loss, 0.9 * 2e4 + 0.1 * (0 + 2e4 + 1e4) / 3, rtol=1e-6)


def test_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = keras.ops.cast(draw_normal(4, 5), "bfloat16")
    loss, wide = SmoothedCrossentropy(dtype="bfloat16"), SmoothedCrossentropy()
    labels = np.arange(4)
    found = loss.call(labels, logits)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_array_equal(to_numpy(found), to_numpy(wide.call(labels, to_numpy(logits))))


def step_adamw(
    w: np.ndarray, g: np.ndarray, rate: float, b1: float, b2: float, epsilon: float, decay: float
) -> np.ndarray:
    """Returns the weights after a first step of AdamW (Loshchilov and Hutter, 2019), with epsilon as in Keras."""
    w = w - rate * decay * w
    m, v = (1 - b1) * g, (1 - b2) * g**2
    return w - rate * np.sqrt(1 - b2) / (1 - b1) * m / (np.sqrt(v) + epsilon)


# Settings that the optimizers of Keras do not have.
OWN_SETTINGS = {"orthogonal_dtype", "stage_decay"}
RULE = {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "weight_decay": 0.3}


@pytest.mark.parametrize("clipnorm", [None, 0.5])
def test_first_step_of_adamw_matches_its_definition(model: ShiftViT, clipnorm: float | None) -> None:
    gradients = draw_gradients(model)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    scale = 1 if clipnorm is None else clipnorm / norm
    before = get_values(model)
    found = compute_changes(model, make_config(**RULE, clipnorm=clipnorm), gradients)
    for path, w in before.items():
        expected = step_adamw(w, scale * gradients[path], 0.02, 0.8, 0.95, 1e-3, 0.3)
        np.testing.assert_allclose(found[path], expected - w, rtol=1e-3, atol=1e-6, err_msg=path)


def compare_steps(model: ShiftViT, twin: ShiftViT, ours: Any, other: Any, rtol: float) -> None:
    """Takes three steps with each optimizer on its own copy of the model; both must end with the same weights."""
    for step in range(3):
        gradients = draw_gradients(model, seed=100 * step)
        apply_gradients(ours, model, gradients)
        apply_gradients(other, twin, gradients)
    check_values(model, get_values(twin), rtol=rtol, atol=rtol / 10)


def test_steps_of_adamw_match_keras(model: ShiftViT) -> None:
    twin = copy_model(model)
    ours = build_optimizer(make_config(**RULE), total_steps=10)
    schedule = WarmUpCosine(RULE["learning_rate"] / 100, RULE["learning_rate"], 0, 10)
    keras_own = keras.optimizers.AdamW(**{**RULE, "learning_rate": schedule})
    compare_steps(model, twin, ours, keras_own, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.7])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_of_muon_match_keras(model: ShiftViT, nesterov: bool, ema: float | None) -> None:
    twin = copy_model(model)
    rule = {**RULE, "name": "muon", "adam_learning_rate": 0.004, "adam_weight_decay": 0.1, "decay_vectors": False}
    ours = build_optimizer(make_config(ema, **rule), total_steps=10)
    ours.nesterov = nesterov
    arguments = {key: value for key, value in ours.get_config().items() if key not in OWN_SETTINGS}
    schedule = WarmUpCosine(RULE["learning_rate"] / 100, RULE["learning_rate"], 0, 10)
    keras_own = keras.optimizers.Muon(**{**arguments, "learning_rate": schedule, "name": "keras_own"})
    keras_own.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    compare_steps(model, twin, ours, keras_own, rtol=1e-5)
    for mine, theirs in zip(ours.variables, keras_own.variables, strict=True):  # the state of the optimizers as well
        np.testing.assert_allclose(to_numpy(mine), to_numpy(theirs), rtol=1e-4, atol=1e-6, err_msg=mine.path)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_optimizers_accept_only_vectors_or_only_matrices(rule: str) -> None:
    for shape in ((7,), (5, 7)):
        variable = keras.Variable(draw_normal(*shape), name="kernel")
        optimizer = build_optimizer(make_config(name=rule), total_steps=10)
        before = to_numpy(variable).copy()
        optimizer.apply([keras.ops.convert_to_tensor(draw_normal(*shape, seed=1))], [variable])
        assert np.isfinite(to_numpy(variable)).all()
        assert np.abs(to_numpy(variable) - before).max() > 1e-6


def test_muon_updates_the_matrices_of_blocks_and_merging(model: ShiftViT) -> None:
    rule = {"name": "muon", "learning_rate": 0.01, "adam_learning_rate": 0.002, "weight_decay": 0}
    found = compute_changes(model, make_config(**rule, epsilon=1e-9), draw_gradients(model))
    by_muon = {
        path
        for path, change in found.items()
        # A first step of Adam is its rate times the signs of the gradient.
        if not np.allclose(np.abs(change), 0.002, rtol=1e-3)
    }
    matrices = re.compile(r"stage\d_(block\d/mlp/fc[12]|merge/reduction)/kernel")
    assert by_muon == {path for path in found if matrices.fullmatch(path)}
    assert len(by_muon) == 5
    for path in by_muon:
        # A step of Muon has singular values of about equal size, scaled by the root of the longer side.
        change = found[path]
        lengths = np.linalg.svd(change, compute_uv=False) / (0.2 * 0.01 * np.sqrt(max(change.shape)))
        assert 0.3 < lengths.min() < lengths.max() < 1.4, path


def test_settings_of_muon_reach_keras() -> None:
    rule = {"name": "muon", "momentum": 0.7, "newton_schulz_steps": 3, "beta_1": 0.8, "beta_2": 0.9}
    optimizer = build_optimizer(make_config(**rule, clipnorm=2.0, adam_weight_decay=0.1), 10)
    found = optimizer.get_config()
    expected = {
        "momentum": 0.7,
        "ns_steps": 3,
        "adam_beta_1": 0.8,
        "adam_beta_2": 0.9,
        "global_clipnorm": 2.0,
        "adam_weight_decay": 0.1,
        "adam_lr_ratio": 3.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("decay_vectors", [True, False])
def test_which_weights_decay(model: ShiftViT, name: str, decay_vectors: bool) -> None:
    rule = {"name": name, "learning_rate": 0.1, "weight_decay": 0.4, "adam_weight_decay": 0.2}
    before = get_values(model)
    nothing = {path: np.zeros_like(value, np.float32) for path, value in before.items()}
    found = compute_changes(model, make_config(**rule, decay_vectors=decay_vectors), nothing)
    for path, change in found.items():
        vector = path.rsplit("/", 1)[-1] in ("bias", "gamma", "beta")
        assert vector == (before[path].ndim == 1)
        by_adam = vector or path.startswith(("patch_embed/", "head/"))
        decay = 0.2 if name == "muon" and by_adam else 0.4
        if vector and not decay_vectors:
            decay = 0.0
        # Keras multiplies by the rate of the optimizer, with Muon even for weights that AdamW updates at its own rate.
        np.testing.assert_allclose(change, -0.1 * decay * before[path], rtol=1e-4, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(("shape", "kind"), [("cosine", WarmUpCosine), ("linear", WarmUpLinear)])
def test_settings_of_the_schedule_are_passed_on(shape: str, kind: type[Any]) -> None:
    plan = ScheduleConfig(shape=shape, warmup=0.25, start=0.1, end=0.3)
    optimizer = build_optimizer(TrainConfig(optimizer=OptimizerConfig(learning_rate=0.2), schedule=plan), 50)
    schedule = optimizer._learning_rate
    assert type(schedule) is kind
    assert schedule.get_config() == {
        "lr_start": pytest.approx(0.02),
        "lr_max": 0.2,
        "warmup_steps": 12,
        "total_steps": 50,
        "lr_end": pytest.approx(0.06),
    }


@pytest.mark.parametrize("base", [None, 64, 256, 1024])
def test_rates_scale_with_the_batch_size(base: int | None) -> None:
    rule = OptimizerConfig(name="muon", learning_rate=0.02, adam_learning_rate=0.01, base_batch_size=base)
    settings = TrainConfig(optimizer=rule, batch_size=256, schedule=ScheduleConfig(warmup=0, end=0.5))
    optimizer = build_optimizer(settings, total_steps=10)
    scale = 1 if base is None else 256 / base
    assert float(to_numpy(optimizer.learning_rate)) == pytest.approx(0.02 * scale)
    assert float(to_numpy(optimizer._learning_rate(10))) == pytest.approx(0.01 * scale)
    assert optimizer.adam_lr_ratio == pytest.approx(0.5)  # so Adam's rate has the same scale


STAGES = {
    "patch_embed/": 1,
    "stage1_block": 1,
    "stage1_merge/": 2,
    "stage2_block": 2,
    "stage2_merge/": 3,
    "stage3_block": 3,
    "norm/": 3,
    "head/": 3,
}


@pytest.mark.parametrize("clipnorm", [None, 2.0])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_stage_matches_a_keras_optimizer_with_its_own_rate(name: str, clipnorm: float | None) -> None:
    model = ShiftViT((16, 16, 3), num_classes=5, embed_dim=24, depths=(1, 1, 1))
    set_random_weights(model)
    twin = copy_model(model)
    rule = {**RULE, "name": name, "stage_decay": 0.6, "decay_vectors": False, "adam_weight_decay": 0.1}
    ours = build_optimizer(make_config(0.9, **rule, clipnorm=clipnorm), total_steps=10)
    stage = {
        v.path: next(number for start, number in STAGES.items() if v.path.startswith(start))
        for v in twin.trainable_variables
    }
    theirs = {}
    for number in (1, 2, 3):
        rate = RULE["learning_rate"] * 0.6 ** (3 - number)
        own = {key: value for key, value in ours.get_config().items() if key not in OWN_SETTINGS}
        kind = keras.optimizers.AdamW if name == "adamw" else keras.optimizers.Muon
        schedule = WarmUpCosine(rate / 100, rate, 0, 10)
        theirs[number] = kind(
            **{**own, "learning_rate": schedule, "name": f"keras_{number}", "global_clipnorm": None, "use_ema": False}
        )
        theirs[number].exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    for step in range(3):
        gradients = draw_gradients(model, seed=100 * step)
        apply_gradients(ours, model, gradients)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        scale = 1.0 if clipnorm is None else np.float32(min(1.0, clipnorm / norm))  # the norm is over all stages
        for number, optimizer in theirs.items():
            variables = [v for v in twin.trainable_variables if stage[v.path] == number]
            optimizer.apply([keras.ops.convert_to_tensor(scale * gradients[v.path]) for v in variables], variables)
    check_values(model, get_values(twin), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_stage_decay_of_one_changes_nothing(model: ShiftViT, name: str) -> None:
    twin = copy_model(model)
    rule = {**RULE, "name": name}
    for which, decay in ((model, 1.0), (twin, 1.0 - 1e-9)):  # the second takes the code path for groups
        optimizer = build_optimizer(make_config(**rule, stage_decay=decay), total_steps=10)
        for step in range(2):
            apply_gradients(optimizer, which, draw_gradients(which, seed=100 * step))
    check_values(model, get_values(twin), rtol=1e-5, atol=1e-6)


def test_frozen_stages_do_not_change_the_rates_of_others() -> None:
    """The last stage has the full rate, however many earlier stages are frozen."""
    rule = {"learning_rate": 0.01, "weight_decay": 0, "stage_decay": 0.5, "epsilon": 1e-9}
    model = ShiftViT((16, 16, 3), num_classes=5, embed_dim=24, depths=(1, 1))
    for layer in model.backbone.layers:
        layer.trainable = layer.name not in ("patch_embed", "stage1_block1")
    found = compute_changes(model, make_config(**rule), draw_gradients(model))
    assert {path.split("/")[0] for path in found} == {"stage1_merge", "stage2_block1", "norm", "head"}
    for path, change in found.items():
        np.testing.assert_allclose(np.abs(change), 0.01, rtol=0.02, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_round_trips_through_its_config(name: str) -> None:
    optimizer = build_optimizer(make_config(0.9, name=name, stage_decay=0.7, clipnorm=1.0), total_steps=10)
    stored = optimizer.get_config()
    assert stored["stage_decay"] == 0.7
    assert type(optimizer).from_config(stored).get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_averaged_weights_are_used_and_then_replaced_again(model: ShiftViT, name: str) -> None:
    momentum = 0.7
    optimizer = build_optimizer(make_config(ema=momentum, name=name, learning_rate=0.05), total_steps=100)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, loss="mse")
    average: Arrays = {}
    for step in range(4):
        apply_gradients(optimizer, model, draw_gradients(model, seed=100 * step))
        for path, value in get_values(model).items():
            # The average begins with the weights after the first step, as the initial ones are noise.
            average[path] = momentum * average[path] + (1 - momentum) * value if step else value
    trained = get_values(model)

    for _ in range(2):  # twice, because the averages must survive the first use
        with use_averaged_weights(model):
            model.predict(draw_normal(2, 16, 16, 3), verbose=0)
            for path, value in get_values(model).items():
                np.testing.assert_allclose(value, average[path], rtol=1e-4, atol=1e-6)
                assert np.abs(value - trained[path]).max() > 1e-3
        check_values(model, trained)


def test_trained_weights_are_restored_after_an_error(model: ShiftViT) -> None:
    optimizer = build_optimizer(make_config(ema=0.9), total_steps=10)
    model.compile(optimizer=optimizer, loss="mse")
    for step in range(2):
        apply_gradients(optimizer, model, draw_gradients(model, seed=step))
    trained = get_values(model)
    with pytest.raises(KeyboardInterrupt), use_averaged_weights(model):
        raise KeyboardInterrupt
    check_values(model, trained)


def test_averaging_without_a_moving_average_changes_nothing(model: ShiftViT) -> None:
    model.compile(optimizer=build_optimizer(make_config(), total_steps=10), loss="mse")
    before = get_values(model)
    with use_averaged_weights(model):
        check_values(model, before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_fit_leaves_the_trained_weights_in_the_model(model: ShiftViT, name: str) -> None:
    """The optimizers of Keras overwrite them with their moving average when `fit` ends."""
    optimizer = build_optimizer(make_config(ema=0.9, name=name, learning_rate=0.05), total_steps=10)
    model.compile(optimizer=optimizer, loss=SmoothedCrossentropy())
    seen: list[Arrays] = []

    def keep(batch: int, logs: Any) -> None:  # noqa: ARG001
        if hasattr(model, "jax_state_sync"):  # within an epoch, jax keeps the state outside the variables
            model.jax_state_sync()
        seen.append(get_values(model))

    last = keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    model.fit(draw_normal(8, 16, 16, 3), np.arange(8) % 5, batch_size=4, verbose=0, callbacks=[last])
    assert len(seen) == 2
    check_values(model, seen[-1])


def test_loss_of_mixed_targets_is_the_mixture_of_the_losses():
    """The loss is linear in the target, so that of a mixture is the mixture of the losses. The loss of Keras agrees."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype("float32")
    a, b, fraction = rng.integers(0, 4, 6), rng.integers(0, 4, 6), rng.random(6).astype("float32")
    target = np.eye(4, dtype="float32")[a] * fraction[:, None] + np.eye(4, dtype="float32")[b] * (1 - fraction)[:, None]
    loss = SmoothedCrossentropy(0.1, reduction="none")
    parts = [keras.ops.convert_to_numpy(loss(label.astype("int32"), logits)) for label in (a, b)]
    found = keras.ops.convert_to_numpy(loss(target, logits))
    np.testing.assert_allclose(found, fraction * parts[0] + (1 - fraction) * parts[1], rtol=1e-5)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(theirs(target, logits)), rtol=1e-5)


def test_balanced_weights_match_scikit_learn_and_weight_the_loss():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    weights = balance_classes(labels, 4)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, [*expected, 0])
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    logits = draw_normal(7, 4)
    plain = to_numpy(SmoothedCrossentropy(0.1, reduction="none")(labels, logits))
    loss = SmoothedCrossentropy(0.1, weights, reduction="none")
    np.testing.assert_allclose(to_numpy(loss(labels, logits)), plain * np.array(weights)[labels], rtol=1e-5)
    targets = np.eye(4, dtype="float32")[labels]
    np.testing.assert_allclose(to_numpy(loss(targets, logits)), plain * np.array(weights)[labels], rtol=1e-5)
    twin = SmoothedCrossentropy.from_config(loss.get_config())
    assert twin.class_weights == weights


def test_top1_accepts_labels_and_mixed_targets():
    logits = np.array([[1.0, 2, 0], [3, 0, 0], [0, 0, 1], [0, 5, 0]], "float32")
    labels = np.array([1, 0, 1, 1], "int32")
    for target in (labels, np.eye(3, dtype="float32")[labels] * 0.6 + 0.4 / 3):
        metric = Top1()
        metric.update_state(target, logits)
        assert float(metric.result()) == pytest.approx(0.75)
    assert Top1.from_config(Top1().get_config()).name == "top1"
