"""A decoder written outside the package: `Stage.forward` and `encode` are all it takes. Recollection, auxiliary losses,
evaluation and stage analysis come along. `python examples/own_decoder.py` learns digit scenes for a few minutes."""

from torch import nn, optim, randn

from recollect import Recollection
from recollect.analysis.predictions import collect_stages
from recollect.backbones import tiny_backbone
from recollect.data import evaluation_loader, open_dataset, training_loader
from recollect.data.digits import make_digit_scenes
from recollect.detectors.staged import Encoded, StagedDetector
from recollect.evaluation import evaluate_model
from recollect.layers.transformer import GroupSelfAttention
from recollect.losses import FocalClassification, SetCriterion
from recollect.ops.boxes import refine_by_logits
from recollect.structures import Prediction, Queries


class Stage(nn.Module):
    def __init__(self, classes, width=64):
        super().__init__()
        self.talk, self.look = GroupSelfAttention(width, 4), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.place = nn.LayerNorm(width), nn.Linear(4, width)
        self.to_class, self.to_box = nn.Linear(width, classes), nn.Linear(width, 4)

    def forward(self, queries, memory):  # contents [B, G, N, C] and boxes [B, G, N, 4] in, the same out
        content = self.talk(queries.content, self.place(queries.boxes.detach()))
        read, _ = self.look(content.flatten(1, 2), memory, memory)  # all groups read the image together
        content = self.norm(content + read.view_as(content))
        boxes = refine_by_logits(queries.boxes.detach(), self.to_box(content))
        return Queries(content, boxes), Prediction(self.to_class(content), boxes)


class OwnDetector(StagedDetector):
    def __init__(self, classes, recollection=None):
        stages = [Stage(classes) for _ in range(4)]
        super().__init__(tiny_backbone((16,)), stages, SetCriterion(FocalClassification()), recollection=recollection)
        self.project, self.start = nn.Conv2d(96, 64, 1), nn.Parameter(randn(1, 20, 68))

    def encode(self, features, batch):
        content, boxes = self.start.expand(len(batch.sizes), -1, -1, -1).split((64, 4), -1)
        return Encoded(Queries(content, boxes.sigmoid()), self.project(features[-1]).flatten(2).transpose(1, 2))


def main(folder, epochs=4, batch=8):
    train, val = (open_dataset(folder, split) for split in ("train", "val"))
    model = OwnDetector(len(train.names), Recollection())
    optimiser = optim.AdamW(model.parameters(), 5e-4)
    for images, targets in (pair for _ in range(epochs) for pair in training_loader(train, batch, workers=0)):
        optimiser.zero_grad()
        sum(model.train()(images, targets).values()).backward()
        optimiser.step()
    loader = evaluation_loader(val, batch, workers=0)
    metrics = evaluate_model(model, loader, val, device="cpu", stages=True)
    print("AP of each stage:", [round(100 * stage.stats["AP"], 1) for stage in metrics.stages])
    return metrics, collect_stages(model, loader, val, device="cpu")  # what recollect.analysis works on


if __name__ == "__main__":
    main(make_digit_scenes("runs/digits", train=1000, val=50))
