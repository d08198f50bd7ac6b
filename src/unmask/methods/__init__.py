"""The ways to learn, by name."""

from unmask.methods.mae import MAE
from unmask.methods.moco import MoCo, MoCoV2
from unmask.methods.moco_v3 import MoCoV3

METHODS = {"mae": MAE, "moco": MoCo, "moco-v2": MoCoV2, "moco-v3": MoCoV3}
