"""Settings of networks and training that have a name."""

from typing import Literal, NamedTuple


class MilSettings(NamedTuple):
    """Settings of a network that reads bags, and of its training.

    Attributes:
        projection: units of the layer (ReLU) that every tile passes first.
        attention: units of the attention's hidden layer (tanh).
        gated: whether a sigmoid of its own multiplies each unit of the attention.
        dropout: share of the units of both layers (and of the gate) that a step drops.
        optimizer: ``adamw`` or ``sgd``.
        learning_rate: at the first step.
        weight_decay: decoupled (``adamw``) or added to the gradient (``sgd``).
        momentum: of ``sgd``.
        schedule: ``constant``, or ``cosine``: down to 1e-8 at the last step.
        epochs: passes over the training bags.
        batch_bags: bags a step.
        bag_rows: most tiles of a bag in a step; of larger bags as many are drawn in each epoch.
        choose: the network that is kept: of the ``last`` epoch, or of the epoch with the
            ``best_validation_auc``, the latest of several.
        balanced: whether the loss of a bag is divided by the share of its class among the training
            bags times the number of classes. (Survival has no classes and is never balanced.)
    """

    projection: int
    attention: int
    gated: bool
    dropout: float
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    weight_decay: float
    momentum: float
    schedule: Literal["constant", "cosine"]
    epochs: int
    batch_bags: int
    bag_rows: int
    choose: Literal["last", "best_validation_auc"]
    balanced: bool


# ``gated``: the dimensions of MIL-Lab and the training of Patho-Bench. ``xmil``: the network and
# training of xMIL, with which the authors of the article published before.
PRESETS = {
    "gated": MilSettings(
        projection=512,
        attention=384,
        gated=True,
        dropout=0.25,
        optimizer="adamw",
        learning_rate=3e-4,
        weight_decay=1e-5,
        momentum=0.0,
        schedule="cosine",
        epochs=20,
        batch_bags=1,
        bag_rows=2048,
        choose="last",
        balanced=True,
    ),
    "xmil": MilSettings(
        projection=256,
        attention=128,
        gated=False,
        dropout=0.0,
        optimizer="sgd",
        learning_rate=2e-3,
        weight_decay=0.0,
        momentum=0.9,
        schedule="constant",
        epochs=1000,
        batch_bags=32,
        bag_rows=2048,
        choose="best_validation_auc",
        balanced=False,
    ),
}
