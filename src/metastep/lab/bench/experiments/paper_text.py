"""``paper/text``: language models of the Penn Treebank, by words."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale
from metastep.lab.bench.experiments.paper_images import ADAM_FAMILY, SGD_FAMILY

TEXT = (
    Experiment(
        name="paper/text",
        summary="LSTMs of 2 and of 3 layers on the Penn Treebank, 150 epochs, the families of SGD and of Adam",
        source="arXiv 2007.14546",
        methods=(*SGD_FAMILY, *ADAM_FAMILY),
        small=Scale(arenas=(Arena(task="ptb/lstm-small", settings={"steps": 60, "eval_every": 30}),), seeds=1),
        full=Scale(
            arenas=tuple(Arena(task=task, settings={"epochs": 150}) for task in ("ptb/lstm2", "ptb/lstm3")), seeds=3
        ),
    ),
)
