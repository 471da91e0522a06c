"""Files of ours in the scorer that others install: `pip install actionformer` (1.5.0) takes them and finds the same numbers.

It needs torch to be built (`--no-build-isolation`), and pandas, joblib and h5py; it is in no extra of ours. OpenTAD is on no
package index: its numbers for two files are golden (test_score.py), and tests/benchmarks/test_tad_score.py reads the form anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import tad_score
from vmae2_ds.downstream.tad.annotations import read_annotations
from vmae2_ds.downstream.tad.detections import read_detections, write_detections
from vmae2_ds.downstream.tad.score import score_detections

WHY = "actionformer is not installed: pip install --no-build-isolation actionformer==1.5.0 pandas joblib h5py"


def test_actionformers_scorer_takes_our_files_and_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("actionformer.utils.metrics", reason=WHY)
    for name, value in {"VIDEOS": 20, "TRUTHS": 150, "CLASSES": 6}.items():
        monkeypatch.setattr(tad_score, name, value)
    files = tad_score.make_files(tmp_path, 1500)
    annotations, written = read_annotations(files.truth), tmp_path / "written.json"
    write_detections(read_detections(files.found), written)
    ours = score_detections(annotations, read_detections(written), subset="test", protocol="actionformer")
    tious = np.array(list(ours.map_of))
    scorer = metrics.ANETdetection(str(files.truth), split="test", tiou_thresholds=tious, num_workers=1)
    by_columns = scorer.evaluate(tad_score.columns_of(files._replace(found=written)), verbose=False)
    # its reader of JSON looks for these names beside ours
    found = json.loads(written.read_text())["results"]
    number = annotations.label_of
    rows = {
        video: [{"segment": row["segment"], "label_id": number[row["label"]], "scores": row["score"]} for row in each]
        for video, each in found.items()
    }
    write_detections(read_detections(written), written, database=rows)
    by_file = scorer.evaluate(str(written), verbose=False)
    for map_T, average, recall_TK in (by_columns, by_file):
        np.testing.assert_allclose(map_T, list(ours.map_of.values()), rtol=0, atol=1e-9)
        np.testing.assert_allclose(average, ours.average_map, rtol=0, atol=1e-9)
        expected_TK = np.array([list(each.values()) for each in ours.recall_of.values()]).T
        np.testing.assert_allclose(recall_TK, expected_TK, rtol=0, atol=1e-9)
