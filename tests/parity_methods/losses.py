"""Loss functions against the reference's golden values: elementwise, reduced, and their gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.golden import NotRepresentable, take
from parity.ledger import Ledger
from parity_methods.goldens import MethodCase, as_double
from recollect.losses import boxes, focal
from recollect.losses.ghm import GHMClassification, GHMRegression

TOLERANCE = 1e-9


def one_hot(labels: Tensor, classes: int, values: Tensor | float = 1.0) -> Tensor:
    """[n] labels, `classes` for background -> [n, classes] of `values`."""
    hot = F.one_hot(labels, classes + 1)[:, :classes].double()
    return hot * (values[:, None] if isinstance(values, Tensor) else values)


def build_loss(config: dict[str, Any]) -> Callable[[Tensor, Any], Tensor]:
    """Our function of (prediction, the case's target), without the loss weight."""
    kind = config["type"]
    ours = {
        "FocalLoss": (focal.focal, {"gamma": "gamma", "alpha": "alpha"}, {"use_sigmoid": True}),
        "QualityFocalLoss": (focal.quality_focal, {"beta": "beta"}, {"use_sigmoid": True}),
        "DistributionFocalLoss": (focal.distribution_focal, {}, {}),
        "VarifocalLoss": (
            focal.varifocal, {"alpha": "alpha", "gamma": "gamma", "iou_weighted": "iou_weighted"}, {"use_sigmoid": True}
        ),
        "GaussianFocalLoss": (focal.gaussian_focal, {"alpha": "alpha", "gamma": "gamma"}, {}),
        "BalancedL1Loss": (boxes.balanced_l1, {"alpha": "alpha", "gamma": "gamma", "beta": "beta"}, {}),
        "SmoothL1Loss": (boxes.smooth_l1, {"beta": "beta"}, {}),
        "L1Loss": (boxes.l1, {}, {}),
        "MSELoss": (partial(F.mse_loss, reduction="none"), {}, {}),
        "IoULoss": (boxes.iou_loss, {"linear": "linear"}, {}),
        "BoundedIoULoss": (boxes.bounded_iou_loss, {"beta": "beta", "eps": "eps"}, {}),
        "GIoULoss": (boxes.giou_loss, {}, {}),
        "DIoULoss": (boxes.diou_loss, {}, {}),
        "CIoULoss": (boxes.ciou_loss, {}, {}),
        "CrossEntropyLoss": (cross_entropy, {"use_sigmoid": "sigmoid", "class_weight": "class_weight"}, {}),
    }  # fmt: skip
    if kind not in ours:
        raise NotRepresentable(f"loss {kind}")
    function, known, fixed = ours[kind]
    bound = partial(function, **take(config, known, fixed, ("type", "loss_weight")))
    if kind == "FocalLoss":
        return lambda pred, target: bound(pred, one_hot(target, pred.shape[1]))
    if kind == "QualityFocalLoss":
        return lambda pred, target: bound(pred, one_hot(target[0], pred.shape[1], target[1])).sum(1)
    return bound


def cross_entropy(logits: Tensor, labels: Tensor, sigmoid: bool, class_weight: list[float] | None = None) -> Tensor:
    """torch's own, which detectors call directly."""
    if sigmoid:
        return F.binary_cross_entropy_with_logits(logits, one_hot(labels, logits.shape[1]), reduction="none")
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=logits.dtype)
    return F.cross_entropy(logits, labels, weight, reduction="none")


def check_losses(case: MethodCase, ledger: Ledger) -> None:
    for name, raw in case.data.items():
        golden = as_double(raw)
        function, factor = build_loss(golden["config"]), golden["config"]["loss_weight"]

        def run(reduce: Callable[[Tensor], Tensor], golden=golden, function=function, factor=factor):
            pred = golden["pred"].clone().requires_grad_()
            value = factor * reduce(function(pred, golden["target"]))
            return value.detach(), torch.autograd.grad(value.sum(), pred)[0]

        weight, count = golden["weight"], golden["avg_factor"]

        def weighted(loss: Tensor, weight=weight, count=count) -> Tensor:
            shaped = weight if weight.ndim == loss.ndim else weight[:, None]
            return (loss * shaped).sum() / count

        ledger.close(f"{name}: none", run(lambda loss: loss)[0], golden["none"], TOLERANCE)
        for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum), ("weighted_avg_factor", weighted)):
            value, grad = run(reduce)
            ledger.close(f"{name}: {reduction}", value, golden[reduction], TOLERANCE)
            ledger.close(f"{name}: gradient of {reduction}", grad, golden[f"grad_{reduction}"], TOLERANCE)


def check_ghm(case: MethodCase, ledger: Ledger) -> None:
    """Three calls of the same module, with its moving histogram after each."""
    for name, golden in case.data.items():
        config = golden["config"]
        options = take(
            config,
            {"bins": "bins", "momentum": "momentum", "mu": "mu"},
            {"use_sigmoid": True},
            ("type", "loss_weight"),
        )
        module = {"GHMC": GHMClassification, "GHMR": GHMRegression}[config["type"]](**options).double()
        for step, one in enumerate(as_double(golden["iterations"])):
            pred, target, valid = one["pred"].clone().requires_grad_(), one["target"], one["label_weight"] > 0
            if config["type"] == "GHMC":
                target = one_hot(target, pred.shape[1])
                valid = valid[:, None].expand_as(pred)
            loss = config["loss_weight"] * module(pred, target, valid)
            (grad,) = torch.autograd.grad(loss, pred)
            ledger.close(f"{name}: loss {step}", loss, one["loss"], TOLERANCE)
            ledger.close(f"{name}: gradient {step}", grad, one["grad"], TOLERANCE)
        if one["acc_sum_after"] is not None:  # every iteration's entry holds the state after the last one
            ledger.close(f"{name}: histogram", module.counts, one["acc_sum_after"], TOLERANCE)
