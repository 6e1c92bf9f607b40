"""Words of the page that a reader may not know, each in one or two sentences.

The page shows one where the reader asks for it (a button beside the word), and all among the
definitions at its end.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """A word as the page writes it, and what it means."""

    word: str
    meaning: str


WORDS = {
    "chance": Word(
        "chance",
        "The robustness index that an embedding without any structure would have. It follows from "
        "how many patches each class and centre has, so that it is 0.5 only where all have equally "
        "many, and may differ between datasets and models.",
    ),
    "support": Word(
        "support",
        "The share of patches that decide the robustness index: those with a neighbour of the same "
        "class from another centre, or of another class from the same centre. Below 50 % the index "
        "speaks for a minority. Of several datasets, the least counts.",
    ),
    "croma": Word(
        "CRoMa",
        "Compares, for each patch, the distance to the nearest patches of its class at other "
        "centres with that to the nearest patches of other classes at its own centre; the number "
        "is the median over patches. Above 0: biology is nearer; below 0: the centre is.",
    ),
    "f0": Word(
        "F(0)",
        "The share of patches whose own CRoMa is 0 or less: for these the centre is as near as "
        "biology, or nearer. Less is better. Means over datasets may disagree with the mean CRoMa.",
    ),
    "tail": Word(
        "tail",
        "The mean CRoMa of the worst tenth of the patches: how badly the model does where it does "
        "worst. More is better.",
    ),
    "front": Word(
        "front",
        "The models that no other encoder beats: none is at least as good in both accuracy and "
        "robustness and better in one. Which of them is best depends on what you need more of.",
    ),
    "no-association": Word(
        "no association",
        "The classifier was trained on patches in which every class comes from every centre "
        "equally, so that the centre tells nothing of the class. It is the accuracy that there is "
        "to lose. Its interval is over repetitions of the split, the index’s is over slides.",
    ),
    "v": Word(
        "V",
        "Cramér’s V: how closely class and centre go together among the training patches. 0: the "
        "centre tells nothing of the class. 1: every class comes from a centre of its own.",
    ),
    "slides-needed": Word(
        "slides needed",
        "How many slides of the same kind, in all, would tell the two models apart in about four "
        "of five cases, if they differ as much as they do here. An estimate: it may be 70 to 90 %.",
    ),
    "exposure": Word(
        "has seen",
        "Whether the encoder was trained on slides of TCGA or of this benchmark, or its authors "
        "chose it by this benchmark. Its numbers may then be better than on your slides. Where it "
        "says “none known”, a source denies it; a dash: no source says anything.",
    ),
    "control": Word(
        "control",
        "No encoder but a yardstick: color_stats sees colour alone, nuclear_texture the texture of "
        "nuclei alone, vit_random is an untrained network. Controls mark the scale; they are not "
        "ranked and not counted.",
    ),
}
