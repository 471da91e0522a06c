"""A folder in which the pages' commands run small: videos of 32 pixels, lists, weights, and what others' tools give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.docs_figures import ROOT
from tests.downstream.ava.made_tubes import golden_set, write_pickle
from tests.downstream.ava.made_up_set import write_made_up_set
from tests.downstream.features.made_source import write_list
from tests.downstream.tad.made_up_videos import write_videos
from vmae2_ds.config.model import ClassifierConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.tools.synthetic import CLASS_NAMES, SynthArguments, write_synthetic_set
from vmae2_ds.downstream.ava.rows import make_rows, write_detections
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

CLASSES, FRAMES, SIZE = len(CLASS_NAMES), 8, 32
CLIP = ClipGeometry(FRAMES, SIZE, SIZE, 2, 8)


def write_world() -> None:
    """Everything, in the current folder."""
    write_lists()
    write_models()
    write_videos(Path("long"), videos=2, validation=2)
    write_list(Path("long.csv"), [str(path) for path in sorted(Path("long/videos").iterdir())])
    people = write_made_up_set(Path("people"), videos=3, validation=1)
    image = {"id": 1, "width": 48, "height": 32, "movie": "video_03", "timestamp": 2}
    coco = {"images": [image], "annotations": [{"image_id": 1, "bbox": [2, 2, 12, 12], "score": 0.9, "category_id": 1}]}
    Path("results.json").write_text(json.dumps(coco))
    Path("detector.json").write_text(json.dumps({"score": 0.9}))
    shutil.copy(people.boxes, "person_boxes.csv")
    Path("excluded.csv").write_text("another_video,0902\n")
    shutil.copytree(ROOT / "hostfiles", "hostfiles")
    write_kinetics()
    write_tubes()


def write_lists() -> None:
    """Lists with labels and two sources, a list of one video, a head map."""
    made = write_synthetic_set(SynthArguments(folder=Path("clips"), train_videos=8, val_videos=4, size=SIZE, frames=16))
    for listed in (made.train, made.val):
        rows = [row.split(",") for row in listed.read_text().splitlines()[1:]]
        lines = [f"clips/{row[0]},{n % 2},{'ab'[2 * n // len(rows)]}" for n, row in enumerate(rows)]
        write_list(Path(listed.name), lines, "path,label,source")
    shutil.copy(made.labels, "names.txt")
    Path("map.json").write_text(json.dumps(list(range(CLASSES))))


def write_models() -> None:
    """A masked autoencoder and a classifier of two blocks, with positions of the small clip."""
    made = ModelConfig.of_size("tiny", patch=8, attention="math")
    encoder, decoder = (
        tower.model_copy(update={"depth": depth}) for tower, depth in ((made.encoder, 2), (made.decoder, 1))
    )
    model = made.model_copy(update={"encoder": encoder, "decoder": decoder})
    write_weights(to_layout(MaskedAutoencoder(model, CLIP, seed=0).state_dict(), model), Path("mae.safetensors"), model)
    classifier = ClassifierConfig(encoder=encoder, patch=8, num_classes=CLASSES, attention="math")
    weights = to_layout(Classifier(classifier, CLIP, seed=1).state_dict(), classifier)
    write_weights(weights, Path("classifier.safetensors"), classifier)


def write_kinetics() -> None:
    """Lists of the three sets: a training and a validation video each, one of them in two sets."""
    for number, name in enumerate(("k400", "k600", "k700")):
        Path(f"{name}_train.txt").write_text(f"abcdefghij{number}_000001_000011.mp4 0\n")
        Path(f"{name}_val.txt").write_text(f"zbcdefghij{number}_000001_000011.mp4 0\n")
        Path(f"{name}_names.txt").write_text("archery\n")
    Path("merges.json").write_text("{}")
    Path("merged_names.txt").write_text("archery\n")


def write_tubes() -> None:
    """The golden set of tubes, its truth as a pickle, and found boxes as AVA's csv at 25 frames a second."""
    annotations, boxes, _ = golden_set()
    write_pickle(annotations, Path("tubes.pkl"))
    height, width = annotations["resolution"]["sport/v0"]
    keys = [(annotations["test_videos"][0][int(row[0])], round((row[1] - 1) * 1000 / 25)) for row in boxes]
    shares = boxes[:, 4:] / [width, height, width, height]
    write_detections(make_rows(keys, shares, boxes[:, 2] + 1, boxes[:, 3]), Path("tube_boxes.csv"))
