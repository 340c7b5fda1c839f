"""Feature extractors: any timm model, with the freezing that detectors ask of it."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import huggingface_hub.constants
import timm
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

_FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    # What a family needs to be a detection backbone, by the beginning of its timm name.
    "hrnet": {"feature_location": ""},  # the default returns the classification head's widths
    "swin": {"strict_img_size": False},  # any image size
    "vit": {"dynamic_img_size": True},
}
_NORMALISED = ("swin", "convnext")  # end their stages in a residual sum: detectors put a layer norm after each map


class Backbone(nn.Module):
    """Feature maps of a timm model at given strides.

    name: timm model, for example "resnet50.tv_in1k". strides: of the maps wanted, each a power of two.
    weights: None for random ones, "pretrained" for timm's from its hub, or a file (safetensors, or a torch file of
        plain tensors) with timm's names.
    norm: batch norm in training mode: "train" as usual, "eval" with fixed statistics but trainable affine, "frozen"
        with both fixed.
    frozen_stages: 0 trains everything, 1 freezes the stem and the first stage (stride 4), 2 one stage more, ...
    options: further arguments of the timm model.

    forward: [B, 3, H, W] -> one [B, C_l, H / stride_l, W / stride_l] per stride. `channels` and `mean`, `std` (the
    normalisation its weights expect, for values in 0..1) are attributes.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int] = (4, 8, 16, 32),
        weights: str | Path | None = None,
        norm: Literal["train", "eval", "frozen"] = "eval",
        frozen_stages: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        family = {
            k: v for prefix, extra in _FAMILY_OPTIONS.items() if name.startswith(prefix) for k, v in extra.items()
        }
        options = {**family, **options}
        self.name, self.strides, self.norm = name, tuple(strides), norm
        probe = self._create(name, None, options)
        reductions = probe.feature_info.reduction()
        missing = [s for s in strides if s not in reductions]
        if missing:
            raise ValueError(f"backbone {name} has no features at stride(s) {missing}, only at {reductions}")
        wanted = [len(reductions) - 1 - reductions[::-1].index(s) for s in strides]
        self.body = self._create(name, weights, {**options, "out_indices": tuple(wanted)})
        self.channels: list[int] = self.body.feature_info.channels()
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC" or "swin" in name
        wants_norm = name.startswith(_NORMALISED)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels if wants_norm)
        config = getattr(self.body, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))
        if isinstance(weights, Path) or (weights is not None and weights != "pretrained"):
            _load_file(self.body, name, Path(weights))
        if norm == "frozen":
            for module in _batch_norms(self.body):
                module.requires_grad_(False)
        if frozen_stages:
            self._freeze(2 ** (frozen_stages + 1))

    @staticmethod
    def _create(name: str, weights: str | Path | None, options: dict[str, Any]) -> Any:
        try:
            with _offline_if_unreachable():
                return timm.create_model(name, features_only=True, pretrained=weights == "pretrained", **options)
        except RuntimeError as error:
            if "Unknown model" in str(error):
                near = timm.list_models(f"{name.split('.')[0].split('_')[0]}*")[:5]
                raise ValueError(f"timm has no model {name!r}; near ones: {', '.join(near) or 'none'}") from error
            raise ValueError(f"backbone {name!r} cannot be built with {options}: {error}") from error
        except Exception as error:
            if weights != "pretrained":
                raise ValueError(f"backbone {name!r} cannot be built with {options}: {error}") from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"the pretrained weights of {name} could not be fetched from the hub ({reason}); give a local file "
                "with --backbone-weights FILE, or train from random weights with --backbone-weights none"
            ) from error

    def _freeze(self, up_to_stride: int) -> None:
        """Freeze everything before and including the stage that ends at `up_to_stride`."""
        stages = self.body.feature_info.info  # all of them, also those whose features nobody asked for
        last = [stage["module"] for stage in stages if stage["reduction"] <= up_to_stride]
        if not last:
            return
        # timm's feature wrappers either keep the module tree ("blocks.1") or flatten its top ("layer1", "stages_0").
        # HRNet calls its layer1 a stage. A stage's last module may hold no parameter: VGG's is a ReLU.
        names = {last[-1], last[-1].replace(".", "_"), {"stage1": "layer1"}.get(last[-1], last[-1])}
        modules = list(self.body.named_modules())  # in the order of construction, which is that of the forward
        ends = [place for place, (name, _) in enumerate(modules) if any(f"{name}.".startswith(f"{n}.") for n in names)]
        if not ends:
            raise ValueError(
                f"backbone {self.name} does not come apart at stage {last[-1]!r}, so its first stages cannot be "
                "frozen; use frozen_stages=0"
            )
        for _, module in modules[: ends[-1] + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but batch norm keeps its statistics unless `norm` is "train"."""
        super().train(mode)
        if self.norm != "train":
            for module in _batch_norms(self.body):
                module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C_l, H_l, W_l] per stride, finest first."""
        maps = list(self.body(images))
        if self.norms:
            if not self._channels_last:
                maps = [m.permute(0, 2, 3, 1) for m in maps]
            maps = [norm(m) for norm, m in zip(self.norms, maps)]
        if self.norms or self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return maps


def tiny_backbone(
    strides: Sequence[int],
    name: str = "resnet10t",
    weights: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A backbone that trains from scratch on a CPU: a narrow ResNet-10 unless another is named.

    Nothing is frozen; batch norm learns its statistics only where there are no pretrained ones.
    """
    if name == "resnet10t" and options is None:
        options = {"channels": (32, 64, 96, 96), "stem_width": 16, "stem_type": "", "avg_down": False}
    norm = "train" if weights is None else "eval"
    return Backbone(name, strides, weights, norm=norm, frozen_stages=0, **(options or {}))


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Without a network the hub client retries for a minute before it looks into its cache: tell it at once."""
    constants = huggingface_hub.constants
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    offline = constants.HF_HUB_OFFLINE
    if not offline and not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | BatchNormAct2d)]


def _load_file(body: nn.Module, name: str, path: Path) -> None:
    """Load weights with timm's names; a classifier head that the features do not have is left aside."""
    if not path.is_file():
        raise ValueError(f"backbone weights {path}: there is no such file")
    state: dict[str, Any]
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"backbone weights {path} cannot be read as plain tensors: {error}") from error
    wrapped = [state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)]
    state = wrapped[0] if wrapped else state
    state = {k.removeprefix("backbone.").removeprefix("module."): v for k, v in state.items()}
    own = body.state_dict()
    children = {child: child.replace("_", ".", 1) for child, _ in body.named_children()}
    chosen, wrong = {}, []
    for key, value in own.items():
        head, _, tail = key.partition(".")
        found = state.get(key, state.get(f"{children.get(head, head)}.{tail}"))
        if found is None and key.endswith("num_batches_tracked"):
            found = value
        if found is None or found.shape != value.shape:
            wrong.append(f"{key} {tuple(value.shape)} (file: {tuple(found.shape) if found is not None else 'missing'})")
        else:
            chosen[key] = found.to(value.dtype)
    if wrong:
        listed = "; ".join(wrong[:10])
        raise ValueError(f"{path} does not hold weights of {name}: {len(wrong)} of {len(own)} entries differ: {listed}")
    body.load_state_dict(chosen)
