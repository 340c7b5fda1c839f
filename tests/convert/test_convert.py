"""From another project's file to a detector that predicts, and back, bit for bit."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from recollect.backbones import Backbone
from recollect.cli import main
from recollect.convert import ConversionError, convert, convert_backbone, is_backbone, to_reference
from recollect.convert.coco import CATEGORIES, IDS, NAMES
from recollect.convert.weights import load_weights, model_from_weights, save_weights
from recollect.registry import create_model, model_entry

# Small detectors of every family and the sources whose files they are written as.
SMALL = [
    ("sqr_adamixer_tiny", "adamixer"),
    ("deformable_detr_tiny", "mmdet2"),
    ("deformable_detr_tiny", "mmdet3"),
    ("deformable_detr_refine_tiny", "mmdet2"),
    ("sqr_deformable_detr_two_stage_tiny", "mmdet3"),
    ("detr_tiny", "detr"),
    ("detr_tiny", "mmdet2"),
    ("detr_tiny", "mmdet3"),
    ("dab_detr_tiny", "dab-detr"),
    ("sparse_rcnn_tiny", "mmdet"),
]


def written(tmp_path, model, source, classes=3, **options):
    """A reference file made of a small random detector, and that detector."""
    detector = create_model(model, num_classes=classes, **options)
    for index, parameter in enumerate(detector.parameters()):  # nothing stays at a value that an initialisation gives
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(index))
    names = [f"kind {i}" for i in range(classes)]
    card = {"model": model, "options": options, "names": names, "recipe": model_entry(model).recipe().to_json()}
    save_weights(tmp_path / "made.safetensors", detector, card)
    torch.save(to_reference(tmp_path / "made.safetensors", source=source), tmp_path / "reference.pth")
    return tmp_path / "reference.pth", detector


def plain(path):
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content.get("model", content))


def same(first, second):
    return set(first) == set(second) and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.parametrize(("model", "source"), SMALL)
def test_round_trip_is_equal_bit_for_bit(tmp_path, model, source):
    path, detector = written(tmp_path, model, source)
    conversion = convert(path, model, source=source)
    assert same(detector.state_dict(), conversion.model.state_dict())
    conversion.save(tmp_path / "ours.safetensors")
    torch.save(to_reference(tmp_path / "ours.safetensors"), tmp_path / "again.pth")
    assert same(plain(path), plain(tmp_path / "again.pth"))


def test_entries_that_we_do_not_use_survive_the_round_trip(tmp_path):
    path, _ = written(tmp_path, "adamixer_tiny", "adamixer")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["rpn_head.init_proposal_bboxes.weight"] = torch.rand(20, 4)
    torch.save(content, path)
    convert(path, "adamixer_tiny").save(tmp_path / "ours.safetensors")
    assert same(content["state_dict"], to_reference(tmp_path / "ours.safetensors")["state_dict"])


def test_names_and_sizes_follow_from_the_file(tmp_path):
    path, _ = written(tmp_path, "adamixer_tiny", "adamixer", classes=5, num_queries=7, num_stages=3)
    conversion = convert(path, "adamixer_tiny")
    assert conversion.card["names"] == [f"kind {i}" for i in range(5)]
    assert conversion.card["options"] == {"num_queries": 7, "num_stages": 3}
    conversion.save(tmp_path / "ours.safetensors")
    model, card = model_from_weights(tmp_path / "ours.safetensors")
    assert (
        len(model.stages) == 3 and card["converted"]["source"] == "adamixer" and len(card["converted"]["sha256"]) == 64
    )
    with pytest.raises(ValueError, match="the names given are 2, but the detector has 5 classes"):
        convert(path, "adamixer_tiny", names=["a", "b"])


def test_coco_table():
    assert len(NAMES) == len(set(NAMES)) == 80 and sorted(IDS) == IDS and (IDS[0], IDS[-1]) == (1, 90)
    assert [i for i in range(1, 91) if i not in CATEGORIES] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


@pytest.mark.parametrize(("model", "source"), [("detr_tiny", "detr"), ("dab_detr_tiny", "dab-detr")])
def test_heads_over_91_ids_are_cut_only_if_told_to(tmp_path, model, source):
    path, whole = written(tmp_path, model, source, classes=91)
    content = torch.load(path, weights_only=True)
    torch.save({"model": content["model"]}, path)
    with pytest.raises(ValueError, match=r"91 rows.*--coco91 cut"):
        convert(path, model)
    conversion = convert(path, model, coco91="cut")
    assert conversion.card["names"] == NAMES and conversion.card["category_ids"] == IDS
    assert any("80 classes" in note for note in conversion.notes)
    image = torch.rand(3, 64, 64)
    ours, theirs = conversion.model, whole.eval()
    with torch.no_grad():
        batch = ours.collate([image])
        logits = [m.decode_features(m.backbone(batch.tensors), batch)[1][-1].logits for m in (ours, theirs)]
    background = [91] if source == "detr" else []
    torch.testing.assert_close(logits[0], logits[1][..., IDS + background])
    conversion.save(tmp_path / "ours.safetensors")
    assert same(plain(path), to_reference(tmp_path / "ours.safetensors")["model"])
    kept = convert(path, model, coco91="keep")
    assert len(kept.card["names"]) == 91 and any("no class names" in note for note in kept.notes)


def test_cutting_other_heads_is_refused(tmp_path):
    path, _ = written(tmp_path, "detr_tiny", "detr")
    with pytest.raises(ValueError, match="no 91 rows to cut, but 3"):
        convert(path, "detr_tiny", coco91="cut")


def test_a_file_of_another_detector_names_both_sides(tmp_path):
    path, _ = written(tmp_path, "detr_tiny", "detr")
    with pytest.raises(ConversionError, match=r"(?s)no checkpoint of adamixer_tiny.*iof_tau.*first ten.*\(\d+,"):
        convert(path, "adamixer_tiny")
    with pytest.raises(ConversionError, match=r"(?s)reference\.pth.*the model has \(64, 64, 1, 1\), the file \(32"):
        convert(path, "detr_r50")
    with pytest.raises(ValueError, match="has no name table for 'nowhere'; it has detr, mmdet2, mmdet3"):
        convert(path, "detr_tiny", source="nowhere")


def test_untied_copies_are_refused(tmp_path):
    """Plain Deformable DETR has one pair of heads; a file with different ones is another detector."""
    path, _ = written(tmp_path, "deformable_detr_refine_tiny", "mmdet2")
    with pytest.raises(ConversionError, match=r"differs from .*, but they are one tensor of ours"):
        convert(path, "deformable_detr_tiny")


def test_ours_without_origin_asks_for_a_source(tmp_path):
    written(tmp_path, "detr_tiny", "detr")
    with pytest.raises(ValueError, match="was not converted from anything; say --source, one of detr, mmdet2, mmdet3"):
        to_reference(tmp_path / "made.safetensors")


def test_command_line_both_ways(tmp_path, capsys):
    path, detector = written(tmp_path, "adamixer_tiny", "adamixer")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main(["convert", str(path), "--model", "adamixer_tiny", "--out", str(ours)]) == 0
    assert "3 classes" in capsys.readouterr().out
    assert same(detector.state_dict(), load_weights(ours)[0])
    assert main(["convert", str(ours), "--to-reference", "--out", str(back)]) == 0
    assert same(plain(path), plain(back))
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    words = [
        "convert",
        str(path),
        "--model",
        "adamixer_tiny",
        "--out",
        str(ours),
        "--names",
        str(tmp_path / "names.txt"),
    ]
    assert main(words) == 0 and load_weights(ours)[1]["names"] == ["red", "green", "blue"]


def test_command_line_faults_are_sentences(tmp_path, capsys):
    path, _ = written(tmp_path, "adamixer_tiny", "adamixer")
    for words, expected in (
        ([str(path), "--out", "x.safetensors"], "--model NAME"),
        ([str(path), "--model", "adamixer_tiny", "--out", "x.pth"], ".safetensors"),
        ([str(path), "--model", "adamixer_tiny", "--out", str(path)], "overwrite"),
        ([str(path), "--model", "adamixr_tiny", "--out", "x.safetensors"], "did you mean"),
        ([str(tmp_path / "no.pth"), "--model", "adamixer_tiny", "--out", "x.safetensors"], "no such file"),
    ):
        assert main(["convert", *words]) == 1
        assert expected in capsys.readouterr().err


# --- Backbones


def test_torchvision_resnet_becomes_a_backbone(tmp_path):
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    assert is_backbone("resnet18") and not is_backbone("detr_tiny") and not is_backbone("nothing")
    notes = convert_backbone(tmp_path / "resnet18.pth", "resnet18", tmp_path / "ours.safetensors")
    assert any("timm" in note for note in notes)
    backbone = Backbone("resnet18", (32,), tmp_path / "ours.safetensors").eval()
    image = torch.rand(1, 3, 64, 64)
    layers = nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[0], layers(image))


@pytest.mark.slow
def test_torchvision_swin_becomes_a_backbone(tmp_path):
    theirs = torchvision.models.swin_t().eval()
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    words = ["convert", str(tmp_path / "swin.pth"), "--model", "swin_tiny_patch4_window7_224"]
    assert main([*words, "--out", str(tmp_path / "ours.safetensors")]) == 0
    ours = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False).eval()
    ours.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    image = torch.rand(1, 3, 112, 112)  # where maps are no larger than a window, the two no longer shift alike
    with torch.no_grad():
        found = ours.layers[1](ours.layers[0](ours.patch_embed(image)))
        torch.testing.assert_close(found, theirs.features[:4](image))


def test_a_wrong_backbone_file_names_keys(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ConversionError, match=r"(?s)resnet18\.pth, read as timm, for resnet34.*the file has none"):
        convert_backbone(tmp_path / "resnet18.pth", "resnet34", tmp_path / "ours.safetensors")
