"""Any model of timm as an encoder, untrained: ResNets for the methods that were published with them, and all the others."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.layers import grid_of
from unmask.models.vit import SIZES

SMALL = 64
"""Pixels of the shorter side up to which a ResNet takes its CIFAR form."""


class Backbone(nn.Module):
    """Images (B, C, H, W) to one vector each, (B, D): timm's model of this name without its classifier, as in
    Backbone("resnet50", image_size=(160, 224), channels=5). No weights are fetched.

    cifar_stem: the form that SimCLR gave the ResNet for CIFAR-10 (Chen et al. 2020, appendix B.9): the first convolution
    is 3x3 of stride 1 instead of 7x7 of stride 2, and there is no max-pooling, so that 32 pixels leave the last stage as
    4x4 and not as 1x1. None takes it where timm's model is a ResNet whose stem is one convolution (resnet18, resnet50,
    resnext50_32x4d, seresnet50, …; not resnet50d, whose stem is three) and the shorter side is at most 64 pixels.
    drop_path: rate of stochastic depth.

    timm's ResNets begin with the last norm of each block at 0: every block passes on its shortcut alone. In evaluation
    mode their batch norms begin with the running mean 0 and variance 1, that is, as the identity. So an untrained ResNet,
    which probes set beside a trained one, is its stem and three convolutions of 1x1 (four in ResNet-50): shallow, but
    the very network that training starts from. Its features are not degenerate, and running statistics measured on the
    images change little: on CIFAR-10 (ResNet-18, 3,000 images to learn from, 1,500 to test on, so +-0.023) k-NN 0.257
    becomes 0.281, and a linear probe stays at 0.310.

    Raises BadInput for a name that timm does not know, and for a size, a number of channels or a drop_path that its
    model cannot take.
    """

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int] = (224, 224),
        channels: int = 3,
        cifar_stem: bool | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        import timm  # a second or two, which the ViTs are spared

        if backbone not in timm.list_models():
            near = difflib.get_close_matches(backbone.partition("/")[0], [*SIZES, *timm.list_models()], n=3)
            raise BadInput(
                f"no encoder is called {backbone!r}"
                + (f" (near: {', '.join(near)})" if near else "")
                + f": use one of {', '.join(SIZES)}, then /PATCH, as in vit-tiny/8, cct-7/3x1 and its like, or a name "
                "of timm.list_models()"
            )
        self.image_size, self.channels = (image_size[0], image_size[1]), channels  # JSON gives lists
        options = {"in_chans": channels, "img_size": self.image_size, "drop_path_rate": drop_path}
        try:
            self.model = create(backbone, options)
            stem = self.model.conv1 if isinstance(self.model, timm.models.ResNet) else None
            if cifar_stem is None:
                cifar_stem = isinstance(stem, nn.Conv2d) and min(self.image_size) <= SMALL
            if cifar_stem:
                if not isinstance(stem, nn.Conv2d):
                    raise BadInput(f"{backbone} has no CIFAR form: only ResNets whose stem is one convolution have")
                conv1 = nn.Conv2d(channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
                nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's
                self.model.conv1, self.model.maxpool = conv1, nn.Identity()
            if patch := getattr(getattr(self.model, "patch_embed", None), "patch_size", None):
                grid_of(self.image_size, max(patch))  # timm would leave the rest of the image out
            with torch.no_grad():
                vector = self.model.eval()(torch.zeros(1, channels, *self.image_size))
            self.model.train()
            if vector.ndim != 2:
                raise ValueError(f"it gives {tuple(vector.shape)} and no vector")
        except BadInput:
            raise
        except Exception as error:  # each of timm's models fails in a way of its own
            height, width = self.image_size
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(
                f"timm's {backbone} cannot take images of {channels} channels and {height}x{width} pixels: {why}"
            ) from None
        self.width = vector.shape[1]
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "image_size": list(self.image_size),
            "channels": channels,
            "cifar_stem": cifar_stem,
        }
        """The arguments that build this architecture again, as JSON values. Not drop_path, a matter of training."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    @property
    def filters(self) -> Tensor | None:
        """The first convolution's filters (D, C, k, k), or None where it is not one that reads the pixels themselves."""
        first = next((module for module in self.model.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None or first.in_channels != self.channels or first.groups != 1:
            return None
        square = first.kernel_size[0] == first.kernel_size[1] > 1
        return first.weight.detach() if square else None


def create(name: str, options: dict[str, Any]) -> nn.Module:
    """timm's model, given those of in_chans, img_size and drop_path_rate that it takes. Its builders pass on what they are
    given, so that asking is the only way to know."""
    import timm

    while True:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **options)
        except TypeError as error:
            unknown = next((option for option in options if option in str(error)), None)
            if unknown is None:
                raise
            if unknown == "drop_path_rate" and options[unknown]:
                raise BadInput(f"timm's {name} has no stochastic depth: leave --drop-path out") from None
            if unknown == "in_chans" and options[unknown] != 3:
                raise BadInput(f"timm's {name} takes images of 3 channels, not of {options[unknown]}") from None
            options = {option: value for option, value in options.items() if option != unknown}
