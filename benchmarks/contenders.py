"""The contenders of `benchmarks/alternatives.py`. Each trains on the same images within a budget of wall time.

All neural networks get the same batches from this package: cropped with 4 pixels of padding, mirrored, normalised and,
if their recipe is `cifar10`, half of them mixed by CutMix. All have the loss of that recipe and the form of its
schedule: a linear warm-up over 15 % of the steps, then a linear decay to 0. Each measures its rate at the beginning and
chooses the number of epochs, so that the schedule ends within the budget. The alternatives compute in float32 or
bfloat16, whichever is faster.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

import shiftvit
from contest import SIDE, Task
from shiftvit.training.fit import prepare
from shiftvit.training.loss import SmoothedCrossentropy
from shiftvit.training.processes import ALONE
from shiftvit.training.schedule import WarmUpLinear

# Filters of a plain network with as many parameters as the model of each recipe.
CNNS = {"quick": (48, 96, 224), "cifar10": (64, 128, 384)}
CNN_RATE, TIMM_RATE, WEIGHT_DECAY = 3e-3, 2e-3, 0.05  # AdamW's
WARM_UP = 0.15
MOST_ITERATIONS = 500  # of gradient boosting
# The result of a contender: its accuracy on the test images, and further figures.
Outcome = tuple[float, dict[str, Any]]


def train_ours(task: Task) -> Outcome:
    """This package with its recipe. The time includes files and checkpoints, but not the final evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        resolved, _, model, steps = prepare(Path(folder) / "trial", task.recipe, task.arrays, ALONE)
        trial = task.trial_batches()
        precision = resolved.train.precision
        _, epochs = task.budget.plan({precision: lambda: model.train_on_batch(*next(trial))}, steps)
        parameters = model.count_params()
        recipe = task.recipe.model_copy(update={"train": task.recipe.train.model_copy(update={"epochs": epochs})})
        run = shiftvit.train(recipe, out=Path(folder) / "run", data=task.arrays)
        seconds = (run.path / "log.jsonl").stat().st_mtime - task.budget.began  # written as the last epoch ends
        found = {"seconds": seconds, "epochs": epochs, "parameters": parameters, "note": precision}
        return run.metrics["test"]["top1"], found


def build_cnn(name: str, classes: int) -> Any:
    """Returns a plain convolutional network: 3x3 convolutions with batch norm and ReLU, max-pooling between.

    The first one has a stride of 2, so that the maps are as large as those of our models: 16x16, 8x8 and 4x4. With a
    stride of 1 it had time for a ninth of the epochs in a trial by hand, and was far worse on training images left out.
    """
    first, second, third = CNNS[name]
    x = inputs = keras.Input((SIDE, SIDE, 3))
    for filters in (first, None, second, second, None, third, third):
        if filters is None:
            x = layers.MaxPooling2D()(x)
        else:
            stride = 2 if x is inputs else 1
            x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.Dense(classes, dtype="float32")(layers.GlobalAveragePooling2D()(x)))


def train_cnn(task: Task, name: str) -> Outcome:
    """The plain network, with Keras' own `fit`."""

    def compiled(policy: str, total: int) -> Any:
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(task.recipe.train.seed)
        model = build_cnn(name, task.classes)
        rate = WarmUpLinear(0.0, CNN_RATE, int(WARM_UP * total), total)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY)
        model.compile(optimizer=optimizer, loss=SmoothedCrossentropy(task.recipe.train.label_smoothing))
        return model

    def stop_in_time(*_: Any, **__: Any) -> None:
        model.stop_training = task.budget.left() <= 0

    def trial_step(policy: str) -> Callable[[], Any]:
        model = compiled(policy, 10**6)
        return lambda: model.train_on_batch(*next(trial))

    trial, steps = task.trial_batches(), len(next(task.batches()))
    policy, epochs = task.budget.plan({policy: trial_step(policy) for policy in ("float32", "mixed_bfloat16")}, steps)
    model = compiled(policy, epochs * steps)
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=stop_in_time)
    for batches in itertools.islice(task.batches(), epochs):
        model.fit(batches, verbose=0, shuffle=False, callbacks=[watch])
        if model.stop_training:
            break
    done = round(int(model.optimizer.iterations) / steps, 2)
    seconds = task.budget.spent()
    test = task.dataset.test
    logits = model.predict(test.preprocess(test.images[np.arange(len(test))]), batch_size=500, verbose=0)
    right = float(np.mean(logits.argmax(-1) == test.labels))
    return right, {"seconds": seconds, "epochs": done, "parameters": model.count_params(), "note": policy}


def train_timm(task: Task, name: str, side: int, **arguments: Any) -> Outcome:
    """One of timm's models from random weights, in a training loop as one writes it in torch.

    `side`: in pixels, what the images are enlarged to. In a trial by hand on training images left out, resnet10t was
    better at 32 than at 64, and mobilenetv3_small_050 at 64.
    """
    import timm
    import torch
    from torch.nn import functional

    settings = task.recipe.train

    def made() -> Any:
        torch.manual_seed(settings.seed)
        return timm.create_model(name, num_classes=task.classes, **arguments).to(memory_format=torch.channels_last)

    def logits_of(images: NDArray[np.float32], bfloat16: bool) -> Any:
        x = torch.from_numpy(images).permute(0, 3, 1, 2)  # which is channels_last
        if side != SIDE:
            x = functional.interpolate(x, size=(side, side), mode="bilinear", antialias=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(x).float()

    def step(batch: tuple[Any, Any], bfloat16: bool) -> None:
        images, labels = batch
        labels = torch.from_numpy(labels if labels.ndim == 2 else labels.astype(np.int64))
        loss = functional.cross_entropy(logits_of(images, bfloat16), labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def optimizer_of(model: Any) -> Any:
        return torch.optim.AdamW(model.parameters(), lr=TIMM_RATE, weight_decay=WEIGHT_DECAY, foreach=True)

    model, trial, steps = made(), task.trial_batches(), len(next(task.batches()))
    optimizer = optimizer_of(model)
    ways = {"float32": lambda: step(next(trial), False), "bfloat16": lambda: step(next(trial), True)}
    precision, epochs = task.budget.plan(ways, steps)
    bfloat16 = precision == "bfloat16"
    model = made()
    optimizer = optimizer_of(model)
    rate, taken = WarmUpLinear(0.0, TIMM_RATE, int(WARM_UP * epochs * steps), epochs * steps), 0
    for batches in itertools.islice(task.batches(), epochs):
        for index in range(steps):
            if task.budget.left() <= 0:
                break
            for group in optimizer.param_groups:
                group["lr"] = float(rate(taken))
            step(batches[index], bfloat16)
            taken += 1
    seconds = task.budget.spent()
    model.eval()
    test, right = task.dataset.test, 0
    with torch.inference_mode():
        for first in range(0, len(test), 500):
            part = np.arange(first, min(first + 500, len(test)))
            logits = logits_of(test.preprocess(test.images[part]), bfloat16)
            right += int((logits.argmax(-1).numpy() == test.labels[part]).sum())
    parameters = sum(value.numel() for value in model.parameters())
    found = {"seconds": seconds, "epochs": round(taken / steps, 2), "parameters": parameters}
    return right / len(test), {**found, "note": precision}


def train_logistic(task: Task) -> Outcome:
    """Logistic regression on raw pixels."""
    from sklearn.linear_model import LogisticRegression

    model = choose_strength(partial(LogisticRegression, max_iter=200), (1e-4, 1e-3, 1e-2, 1e-1), task)
    seconds = task.budget.spent()
    found = {"seconds": seconds, "parameters": model.coef_.size + model.intercept_.size, "note": f"C={model.C:g}"}
    return model.score(task.flatten(task.dataset.test), task.dataset.test.labels), found


def train_svm(task: Task) -> Outcome:
    """A support vector machine on raw pixels with an RBF kernel, which BLAS computes, of scikit-learn's usual width."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC

    x = task.flatten(task.dataset.train)
    kernel = partial(rbf_kernel, gamma=1.0 / (x.shape[1] * x.var()))
    model = choose_strength(lambda C: SVC(C=C, kernel=kernel), (1.0, 3.0, 10.0, 30.0), task)
    found = {"seconds": task.budget.spent(), "note": f"C={model.C:g}, {len(model.support_)} support vectors"}
    return model.score(task.flatten(task.dataset.test), task.dataset.test.labels), found


def choose_strength(make: Callable[..., Any], strengths: tuple[float, ...], task: Task) -> Any:
    """Returns an estimator that was fitted on all training images, with the best C on a held-out fifth of them.

    It tries as many values as the time allows.
    """
    from sklearn.model_selection import train_test_split

    x, y = task.flatten(task.dataset.train), task.dataset.train.labels
    kept, held, y_kept, y_held = train_test_split(x, y, test_size=0.2, stratify=y, random_state=task.recipe.train.seed)
    scores: dict[float, float] = {}
    for strength in strengths:
        began = task.budget.spent()
        scores[strength] = make(C=strength).fit(kept, y_kept).score(held, y_held)
        if task.budget.left() < 4 * (task.budget.spent() - began):  # for the next one and the fit on all images
            break
    return make(C=max(scores, key=lambda strength: scores[strength])).fit(x, y)


def train_boosting(task: Task) -> Outcome:
    """Histogram gradient boosting on raw pixels, with as many iterations as the time allows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x, y = task.flatten(task.dataset.train), task.dataset.train.labels
    settings = {"early_stopping": False, "warm_start": True, "random_state": task.recipe.train.seed}
    model = HistGradientBoostingClassifier(max_iter=1, **settings).fit(x, y)
    added, took = 1, task.budget.spent()
    while model.max_iter < MOST_ITERATIONS:
        affordable = int(added * 0.8 * task.budget.left() / took)
        added = min(2 * added, affordable, MOST_ITERATIONS - model.max_iter)
        if added < 1:
            break
        began = task.budget.spent()
        model.set_params(max_iter=model.max_iter + added).fit(x, y)
        took = task.budget.spent() - began
    found = {"seconds": task.budget.spent(), "note": f"{model.max_iter} iterations"}
    return model.score(task.flatten(task.dataset.test), task.dataset.test.labels), found


# The contenders that may end early come first, so that the others get their cores.
CONTENDERS: dict[str, Callable[[Task], Outcome]] = {
    "scikit-learn logistic regression": train_logistic,
    "scikit-learn SVM, RBF kernel": train_svm,
    "scikit-learn HistGradientBoosting": train_boosting,
    "shiftvit, recipe quick": train_ours,
    "shiftvit, recipe cifar10": train_ours,
    "shiftvit, recipe photos": train_ours,
    "plain Keras CNN like quick": partial(train_cnn, name="quick"),
    "plain Keras CNN like cifar10": partial(train_cnn, name="cifar10"),
    "timm mobilenetv3_small_050, 64 px": partial(train_timm, name="mobilenetv3_small_050", side=64),
    "timm resnet10t": partial(train_timm, name="resnet10t", side=SIDE),
    "timm convnext_atto, patches of 2 px": partial(train_timm, name="convnext_atto", side=SIDE, patch_size=2),
}
# The recipe whose images, augmentation and loss a contender gets; the others get those of `cifar10`.
RECIPES = {
    "shiftvit, recipe quick": "quick",
    "shiftvit, recipe photos": "photos",
    "plain Keras CNN like quick": "quick",
}
