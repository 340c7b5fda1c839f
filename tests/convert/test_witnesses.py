"""Second witnesses: DETR, Deformable DETR and DAB-DETR of HF transformers, with the same random weights.

Their backbones' features go to ours; predictions of all stages must agree, and so must matching costs and losses.
"""

import pytest
import torch

from parity.staged import NoBackbone
from recollect.convert.rules import Rule, Table, to_ours
from recollect.convert.transformers import mlp
from recollect.detectors import dab_detr, deformable_detr, detr
from recollect.losses import FocalClassification, SoftmaxClassification
from recollect.losses.set_criterion import gather_objects
from recollect.matching.hungarian import HungarianMatcher
from recollect.ops.boxes import cxcywh_to_xyxy
from recollect.structures import ImageBatch, Prediction

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SIZES, PADDED = [(128, 192), (96, 128)], (128, 192)
SHARED = {
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 9, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "num_labels": 5, "auxiliary_loss": True, "use_timm_backbone": False, "backbone": None,
    "use_pretrained_backbone": False,
}  # fmt: skip
OURS = {"channels": 32, "heads": 4, "feedforward": 48, "encoder_layers": 2}
CHANNELS = [8, 12, 16, 20]


def theirs(model, config, outputs, dtype=torch.float32, **more):
    """A small random model; nothing stays at a value that an initialisation gives."""
    body = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=CHANNELS, depths=[1, 1, 1, 1], layer_type="basic", out_features=outputs
    )
    built = model(config(backbone_config=body, **SHARED, **more)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return built


def without_backbone(channels):
    body = NoBackbone()
    body.channels = channels
    return body


def attention(their, our, out="o_proj"):
    """Query, key and value projections are three there and one here."""
    parts = ("q_proj", "k_proj", "v_proj")
    return (
        Rule(tuple(f"{their}.{part}.weight" for part in parts), f"{our}.in_proj_weight"),
        Rule(tuple(f"{their}.{part}.bias" for part in parts), f"{our}.in_proj_bias"),
        Rule(f"{their}.{out}.*", f"{our}.out_proj.*"),
    )


def feed_forward(their, our, block="mlp."):
    return (
        Rule(f"{their}.{block}fc1.*", f"{our}.feedforward.linear1.*"),
        Rule(f"{their}.{block}fc2.*", f"{our}.feedforward.linear2.*"),
        Rule(f"{their}.{block}activation_fn.*", f"{our}.feedforward.activation.*"),
        Rule(f"{their}.final_layer_norm.*", f"{our}.feedforward.norm.*"),
        Rule(f"{their}.mlp.final_layer_norm.*", f"{our}.feedforward.norm.*"),
    )


ENCODER, DECODER = "model.encoder.layers.{i}", "model.decoder.layers.{s}"
BACKBONE = Rule("model.backbone.*", None, why="its features are the input")

DETR = Table("transformers", ("DETR",), "", (
    BACKBONE,
    Rule("model.input_projection.*", "encoder.project.*"),
    Rule("model.query_position_embeddings.weight", "query_embedding.weight"),
    *attention(f"{ENCODER}.self_attn", "encoder.layers.{i}.attention"),
    Rule(f"{ENCODER}.self_attn_layer_norm.*", "encoder.layers.{i}.norm.*"),
    *feed_forward(ENCODER, "encoder.layers.{i}"),
    *attention(f"{DECODER}.self_attn", "stages.{s}.self_attention.attention"),
    Rule(f"{DECODER}.self_attn_layer_norm.*", "stages.{s}.self_attention.norm.*"),
    *attention(f"{DECODER}.encoder_attn", "stages.{s}.cross_attention.attention"),
    Rule(f"{DECODER}.encoder_attn_layer_norm.*", "stages.{s}.cross_attention.norm.*"),
    *feed_forward(DECODER, "stages.{s}"),
    Rule("model.decoder.layernorm.*", "stages.{s}.norm.*"),
    Rule("class_labels_classifier.*", "stages.{s}.to_class.*"),
    *mlp("bbox_predictor.layers", "stages.{s}.to_box", 3),
))  # fmt: skip

DEFORMABLE = Table("transformers", ("Deformable DETR",), "", (
    BACKBONE,
    *(Rule(f"model.input_proj.{level}.0.*", f"neck.convs.{level}.*") for level in range(3)),
    *(Rule(f"model.input_proj.{level}.1.*", f"neck.norms.{level}.*") for level in range(3)),
    Rule("model.input_proj.3.0.*", "neck.extra_convs.0.*"),
    Rule("model.input_proj.3.1.*", "neck.extra_norms.0.*"),
    Rule("model.query_position_embeddings.weight", "query_embedding.weight"),
    Rule("model.level_embed", "encoder.level_embedding"),
    Rule(f"{ENCODER}.self_attn.*", "encoder.layers.{i}.attention.*"),
    Rule(f"{ENCODER}.self_attn_layer_norm.*", "encoder.layers.{i}.norm.*"),
    *feed_forward(ENCODER, "encoder.layers.{i}"),
    *attention(f"{DECODER}.self_attn", "stages.{s}.self_attention.attention"),
    Rule(f"{DECODER}.self_attn_layer_norm.*", "stages.{s}.self_attention.norm.*"),
    Rule(f"{DECODER}.encoder_attn.*", "stages.{s}.cross_attention.*"),
    Rule(f"{DECODER}.encoder_attn_layer_norm.*", "stages.{s}.cross_norm.*"),
    *feed_forward(DECODER, "stages.{s}"),
    Rule("model.reference_points.*", "reference_points.*"),
    Rule("model.enc_output.*", "proposals.project.*"),
    Rule("model.enc_output_norm.*", "proposals.norm.*"),
    Rule("model.pos_trans.*", "proposals.position.*"),
    Rule("model.pos_trans_norm.*", "proposals.position_norm.*"),
    Rule("class_embed.{S}.*", "proposals.to_class.*", copies=("model.decoder.class_embed.{S}.*",)),
    *mlp("bbox_embed.{S}.layers", "proposals.to_box", 3, copies=("model.decoder.bbox_embed.{S}.layers",)),
    Rule("class_embed.{s}.*", "stages.{s}.to_class.*", copies=("model.decoder.class_embed.{s}.*",)),
    *mlp("bbox_embed.{s}.layers", "stages.{s}.to_box", 3, copies=("model.decoder.bbox_embed.{s}.layers",)),
), counts={"S": "stages.{s}.cross_norm.weight"})  # fmt: skip


def conditional(kind, our):
    names = {
        "query_content": "query_content", "query_pos": "query_position", "query_pos_sine": "query_sine",
        "key_content": "key_content", "key_pos": "key_position", "value": "value",
    }  # fmt: skip
    their = f"{DECODER}.{kind}_attn"
    return (
        *(Rule(f"{their}.{kind}_attn_{name}_proj.*", f"stages.{{s}}.{our}.{mine}.*") for name, mine in names.items()),
        Rule(f"{their}.{kind}_attn.output_proj.*", f"stages.{{s}}.{our}.out.*"),
        Rule(f"{their}.{kind}_attn_layer_norm.*", f"stages.{{s}}.{our}.norm.*"),
    )


HEADS = "stages.{s}.shared."
DAB = Table("transformers", ("DAB-DETR",), "", (
    BACKBONE,
    Rule("model.input_projection.*", "encoder.project.*"),
    Rule("model.query_refpoint_embeddings.weight", "anchors.weight"),
    *attention(f"{ENCODER}.self_attn", "encoder.layers.{i}.attention", out="out_proj"),
    Rule(f"{ENCODER}.self_attn_layer_norm.*", "encoder.layers.{i}.norm.*"),
    *feed_forward(ENCODER, "encoder.layers.{i}", block=""),
    *mlp("model.encoder.query_scale.layers", "encoder.position_scale", 2),
    *conditional("self", "self_attention"),
    *conditional("cross", "cross_attention"),
    *feed_forward(DECODER, "stages.{s}"),
    *mlp("model.decoder.ref_point_head.layers", f"{HEADS}position", 2),
    *mlp("model.decoder.query_scale.layers", f"{HEADS}scale", 2),
    *mlp("model.decoder.ref_anchor_head.layers", f"{HEADS}size", 2),
    Rule("model.decoder.layernorm.*", f"{HEADS}norm.*"),
    Rule("class_embed.*", f"{HEADS}to_class.*"),
    *mlp("bbox_predictor.layers", f"{HEADS}to_box", 3, copies=("model.decoder.bbox_embed.layers",)),
))  # fmt: skip


def objects(dtype):
    """Random objects, in our form and in theirs."""
    generator = torch.Generator().manual_seed(2)
    mine, other = [], []
    for count, (height, width) in zip((3, 1), SIZES):
        centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator, dtype=dtype)
        boxes = torch.cat((centre, 0.1 + 0.3 * torch.rand(count, 2, generator=generator, dtype=dtype)), 1)
        labels = torch.randint(0, 5, (count,), generator=generator)
        whwh = torch.tensor([width, height, width, height], dtype=dtype)
        mine.append({"boxes": cxcywh_to_xyxy(boxes) * whwh, "labels": labels})
        other.append({"boxes": boxes, "class_labels": labels})
    return mine, other


def agree(witness, ours, table, tolerance):
    """Predictions of all stages for two images of different sizes, and the losses of all stages."""
    state, dtype = witness.state_dict(), witness.dtype
    ours.load_state_dict(to_ours(table, state, ours.to(dtype).eval().state_dict(keep_vars=True)).state)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.zeros(len(SIZES), 3, *PADDED, dtype=dtype)
    mask = torch.zeros(len(SIZES), *PADDED, dtype=torch.long)
    for index, (height, width) in enumerate(SIZES):
        pixels[index, :, :height, :width] = torch.randn(3, height, width, generator=generator, dtype=dtype)
        mask[index, :height, :width] = 1
    targets, labels = objects(dtype)
    seen = []
    backbone = getattr(witness.model.backbone, "conv_encoder", witness.model.backbone)
    hook = backbone.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        expected = witness(pixels, pixel_mask=mask, labels=labels)
        hook.remove()
        batch = ImageBatch(pixels, SIZES)
        encoded, found = ours.decode_features([level[0] for level in seen[0]], batch)
        losses = ours.criterion(found, targets, batch.whwh(), encoded.proposals)
    stages = [*expected.auxiliary_outputs, {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    assert len(found) == len(stages) == 3
    close = {"rtol": tolerance, "atol": tolerance}
    weights = {
        "class": ("loss_ce", ours.criterion.classification.weight),
        "l1": ("loss_bbox", 5),
        "giou": ("loss_giou", 2),
    }
    for index, (mine, stage) in enumerate(zip(found, stages)):
        torch.testing.assert_close(mine.logits[:, 0], stage["logits"], **close)
        torch.testing.assert_close(mine.boxes[:, 0], stage["pred_boxes"], **close)
        for name, (their, weight) in weights.items():
            loss = expected.loss_dict[their if index == 2 else f"{their}_{index}"]
            # They clamp nothing in GIoU, we hold areas at 1e-7 pixels squared.
            torch.testing.assert_close(
                losses[f"stage{index}_{name}"] / weight, loss, rtol=max(tolerance, 1e-6), atol=1e-6
            )
    return encoded, expected


def test_detr():
    witness = theirs(transformers.DetrForObjectDetection, transformers.DetrConfig, ["stage4"], d_model=32)
    agree(
        witness, detr._build(5, 9, 3, without_backbone(CHANNELS[-1:]), None, dropout=0.0, **OURS), DETR, tolerance=1e-4
    )


@pytest.mark.parametrize(("refine", "two_stage"), [(False, False), (True, False), (True, True)])
def test_deformable_detr(refine, two_stage):
    witness = theirs(
        transformers.DeformableDetrForObjectDetection, transformers.DeformableDetrConfig,
        ["stage2", "stage3", "stage4"], dtype=torch.float64, d_model=32, with_box_refine=refine, two_stage=two_stage,
        two_stage_num_proposals=9, class_cost=2,
    )  # fmt: skip
    ours = deformable_detr._build(
        5, 9, 3, without_backbone(CHANNELS[1:]), None, refine=refine, two_stage=two_stage, dropout=0.0, neck_bias=True,
        **OURS,
    )  # fmt: skip
    # Their grids and encodings are float32 even in a float64 model.
    encoded, expected = agree(witness, ours, DEFORMABLE, tolerance=1e-4)
    if two_stage:
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(encoded.proposals.logits[:, 0], expected.enc_outputs_class, **close)


def test_dab_detr():
    witness = theirs(transformers.DabDetrForObjectDetection, transformers.DabDetrConfig, ["stage4"], hidden_size=32)
    agree(witness, dab_detr._build(5, 9, 3, without_backbone(CHANNELS[-1:]), None, **OURS), DAB, tolerance=1e-4)


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_matching_costs_on_random_predictions(kind, monkeypatch):
    """The matrices that both hand to the assignment, and what comes out."""
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    softmax = kind == "softmax"
    classification = SoftmaxClassification(cost_weight=1.0) if softmax else FocalClassification()
    module = loss_for_object_detection if softmax else loss_deformable_detr
    matcher = module.HungarianMatcher if softmax else module.DeformableDetrHungarianMatcher
    theirs_matcher = matcher(class_cost=classification.cost_weight, bbox_cost=5.0, giou_cost=2.0)
    handed, assign = [], module.linear_sum_assignment
    monkeypatch.setattr(module, "linear_sum_assignment", lambda costs: handed.append(costs) or assign(costs))

    targets, labels = objects(torch.float64)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 20, 5 + softmax, generator=generator, dtype=torch.float64)
    boxes = 0.1 + 0.4 * torch.rand(2, 20, 4, generator=generator, dtype=torch.float64)
    expected = theirs_matcher({"logits": logits, "pred_boxes": boxes}, labels)

    ours = HungarianMatcher(classification)
    whwh = ImageBatch(torch.zeros(2, 3, *PADDED, dtype=torch.float64), SIZES).whwh()
    known = gather_objects(targets, whwh)
    costs = ours.cost(logits[:, None], boxes[:, None], known, slice(0, 2))[:, 0]
    (found,) = ours.match([(Prediction(logits[:, None], boxes[:, None]), known)])
    for image, (queries, matched) in enumerate(expected):
        count = len(matched)
        torch.testing.assert_close(costs[image, :, :count], handed[image], rtol=1e-6, atol=1e-6)
        pairs = zip(found.query[found.image == image].tolist(), found.object[found.image == image].tolist())
        assert sorted(pairs) == sorted(zip(queries.tolist(), matched.tolist()))
