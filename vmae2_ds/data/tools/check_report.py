"""report.html and report.json of `vmae2 data check`: verdicts, statistics, and clips as the model will see them."""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np

from vmae2_ds.data.clips.sampling import sample_stride
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.tools.scan import Scanned, ScanOptions, key_of
from vmae2_ds.data.tools.verdicts import CheckedManifest, JudgedRow
from vmae2_ds.data.tools.video_facts import VideoFacts
from vmae2_ds.disk import write_whole
from vmae2_ds.draw.charts import histogram_svg
from vmae2_ds.draw.pages import templates_of
from vmae2_ds.errors import VideoError

MOST_BAD_ROWS = 200
CLIP_SIZE, FRAMES_SHOWN, SHOWN_SIZE = 224, 8, 96
CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Default of PretrainDataConfig.crop_scales."""
QUANTITIES = {
    "fps": ("Frames a second", "frames a second"),
    "gop": ("Frames from key frame to key frame", "frames, median of a file"),
    "short_side": ("Short side", "pixels"),
    "duration_s": ("Duration", "seconds"),
}
"""What is counted of every file: title and unit."""


class Strip(NamedTuple):
    """Frames of one clip side by side."""

    src: str
    """data: URL of a JPEG."""
    name: str
    label: str


def write_check_report(
    result: CheckedManifest,
    manifest: Manifest,
    found: dict[str, Scanned],
    judged: list[JudgedRow],
    look: ScanOptions,
    pictures: int,
    seed: int,
) -> None:
    """Write both files into `result.out`."""
    sources = statistics_by_source(manifest, found, look)
    rows_by_source = Counter(entry.source for entry in manifest)
    about = {
        "manifest": manifest.file,
        "rows": result.rows,
        "files": result.files,
        "good_rows": result.rows - result.bad,
        "verdicts": result.verdicts,
        "notes": result.warnings,
        "rows_by_source": dict(rows_by_source),
        "by_source": sources,
    }
    write_whole(result.out / "report.json", json.dumps(about, indent=1))
    facts = [scanned.facts for scanned in found.values() if scanned.facts is not None]
    histograms = []
    for name, (title, unit) in QUANTITIES.items():
        values = [value for value in (_quantity(fact, name) for fact in facts) if not math.isnan(value)]
        if values:
            histograms.append((title, histogram_svg(values, title, unit)))
    page = (
        templates_of("vmae2_ds.data.tools")
        .get_template("check_report.html")
        .render(
            title=f"Check of {manifest.file}",
            **about,
            readers=result.readers,
            advice=result.advice,
            histograms=histograms,
            bad=[row for row in judged if row.verdict is not None][:MOST_BAD_ROWS],
            strips=draw_strips(manifest, judged, look, pictures, seed),
            look=look,
        )
    )
    write_whole(result.out / "report.html", page.encode("utf-8", "backslashreplace"))


def statistics_by_source(manifest: Manifest, found: dict[str, Scanned], look: ScanOptions) -> dict[str, dict[str, Any]]:
    """Figures of each source's readable files: number, usual codec and resolution, quartiles of what QUANTITIES names."""
    facts: dict[str, dict[str, VideoFacts]] = defaultdict(dict)
    for entry in manifest:
        scanned = found[key_of(entry, look.how)]
        if scanned.facts is not None:
            facts[entry.source][scanned.key] = scanned.facts
    return {source: _statistics(list(files.values())) for source, files in facts.items()}


def draw_strips(manifest: Manifest, judged: list[JudgedRow], look: ScanOptions, count: int, seed: int) -> list[Strip]:
    """Random good rows, sampled and cropped as for pre-training."""
    rng = np.random.default_rng(seed)
    good = [row.row for row in judged if row.verdict is None]
    strips = []
    with Watchdog(look.timeout_s) as watchdog:
        for row in sorted(rng.permutation(good)[:count].tolist()):
            entry = manifest[row]
            try:
                strips.append(_draw_strip(entry, look, watchdog, rng))
            except VideoError:
                continue  # a part of the file that the check did not decode
    return strips


def _draw_strip(entry: VideoEntry, look: ScanOptions, watchdog: Watchdog, rng: np.random.Generator) -> Strip:
    import torch
    from PIL import Image

    from vmae2_ds.data.clips.crops import crop_resize, draw_crop

    def choose(length: int, fps: float) -> np.ndarray:
        part = length - entry.start if entry.frames is None else min(entry.frames, length - entry.start)
        return entry.start + sample_stride(part, look.num_frames, look.stride, rng)

    frames_THWC = watchdog.read(entry, look.how, choose)
    box = draw_crop(frames_THWC.shape[1], frames_THWC.shape[2], CLIP_SIZE, CROP_SCALES, rng)
    clip_THWC = crop_resize(torch.from_numpy(frames_THWC), box, CLIP_SIZE).numpy()
    shown = clip_THWC[np.linspace(0, len(clip_THWC) - 1, min(FRAMES_SHOWN, len(clip_THWC))).astype(int)]
    image = Image.fromarray(np.concatenate(list(shown), axis=1))
    file = io.BytesIO()
    image.resize((SHOWN_SIZE * len(shown), SHOWN_SIZE)).save(file, "JPEG", quality=80)
    label = "" if entry.label is None else f"label {entry.label}"
    return Strip("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), entry.name, label)


def _statistics(facts: list[VideoFacts]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "files": len(facts),
        "codec": Counter(fact.codec for fact in facts).most_common(1)[0][0],
        "resolution": "{}x{}".format(*Counter((fact.width, fact.height) for fact in facts).most_common(1)[0][0]),
        "bytes": sum(fact.size for fact in facts),
        "hours": sum(fact.duration_s for fact in facts if not math.isnan(fact.duration_s)) / 3600,
        "variable_frame_rate": sum(fact.is_vfr for fact in facts),
    }
    for name in QUANTITIES:
        values = [value for fact in facts if not math.isnan(value := _quantity(fact, name))]
        told[name] = _quartiles(values) if values else None
    return told


def _quantity(facts: VideoFacts, name: str) -> float:
    return float(min(facts.width, facts.height) if name == "short_side" else getattr(facts, name))


def _quartiles(values: list[float]) -> dict[str, float]:
    low, high = (float(np.quantile(values, share)) for share in (0.25, 0.75))
    return {"median": statistics.median(values), "low": low, "high": high, "least": min(values), "most": max(values)}
