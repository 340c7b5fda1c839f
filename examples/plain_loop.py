"""Training without Lightning: a loop of your own around a detector of the registry.

python examples/plain_loop.py            makes the demo's digit scenes in a temporary folder and trains for 200 steps
python examples/plain_loop.py FOLDER 1000        the same on a dataset of yours, for 1000 steps
"""

import sys
import tempfile

import torch
from torch import nn

from recollect import create_model
from recollect.data import evaluation_loader, evaluation_transform, open_dataset, training_loader, training_transform
from recollect.data.digits import make_digit_scenes
from recollect.evaluation import evaluate_model
from recollect.registry import model_entry


def main(folder, steps=200, model_name="sqr_adamixer_tiny", batch=16):
    recipe = model_entry(model_name).recipe()
    train = open_dataset(folder, "train")
    val = open_dataset(folder, "val").with_transform(evaluation_transform(recipe.data))
    train = train.with_transform(training_transform(recipe.data))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(model_name, num_classes=len(train.names)).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.optimiser.lr, weight_decay=recipe.optimiser.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.optimiser.lr, steps)

    loader = training_loader(train, batch, seed=0, workers=0)
    step = 0
    while step < steps:
        for images, targets in loader:
            losses = model.train()([image.to(device) for image in images], targets)
            loss = sum(losses.values())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip_norm)
            optimiser.step()
            schedule.step()
            step += 1
            if step % 10 == 0 or step == steps:
                print(f"step {step}: loss {loss.item():.2f}")
            if step == steps:
                break

    metrics = evaluate_model(model, evaluation_loader(val, batch, workers=0), val, device=device, stages=True)
    for number, stage in enumerate(metrics.stages, 1):
        print(f"stage {number}: AP {100 * stage.stats['AP']:.1f}")
    return metrics


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = sys.argv[1] if len(sys.argv) > 1 else make_digit_scenes(scratch, train=1000, val=50)
        main(given, *(int(n) for n in sys.argv[2:3]))
