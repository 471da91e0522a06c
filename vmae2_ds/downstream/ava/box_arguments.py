"""What `vmae2 ava boxes` is asked, what it writes, and what it says of its work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import AfterValidator, model_validator

from vmae2_ds.config.ava import Seconds, VideosAre
from vmae2_ds.config.strict import Count, Edge, Part, ReadLimit, Size, StrictModel, Whole
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import check_out_file
from vmae2_ds.downstream.ava.image_table import read_image_table, table_of_size
from vmae2_ds.downstream.ava.person_boxes import FormatName, PersonBoxes, write_person_boxes
from vmae2_ds.downstream.ava.recall import Recall, describe_recalls, recalls_of
from vmae2_ds.downstream.ava.rows import BoxRows
from vmae2_ds.errors import ConfigError

FORM_OF: dict[str, FormatName] = {".json": "coco", ".csv": "pyslowfast", ".pkl": "mmaction2"}
"""Ending of a file -> the form that it then has."""


def _check_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise ValueError(f"{text!r} is no width and height in pixels, such as 1920x1080")
    return text


class AvaBoxesArguments(StrictModel):
    """Make a file of persons' boxes at key frames: out of another one, out of a detector's results, or out of videos.

    The four forms are read by their content, and hold the same boxes: coco (results of any detector), videomae_ad
    (VideoMAE-Action-Detection), pyslowfast (8 columns) and mmaction2 (a pickle, of which nothing is run).
    """

    convert: tuple[Path, Path] | None = None
    """A file of boxes, and the file to write them to in another form."""
    from_coco: Path | None = None
    """A detector's results as COCO's JSON; those at the key frames of --truth are written to --out."""
    videos: Path | None = None
    """Folder of videos to look for persons in, at the key frames of --truth, with the detector of --weights."""
    out: Path | None = None
    """File to write with --from-coco and --videos."""
    to: FormatName | None = None
    """Form of the file that is written; default: by its ending, .json coco, .csv pyslowfast, .pkl mmaction2. Digits that stay:
    all in mmaction2, 6 after the point in pyslowfast, 6 of a pixel in coco and videomae_ad."""
    truth: Path | None = None
    """File of true boxes in AVA's form: the recall of the boxes is told, and with --from-coco and --videos it names the key
    frames."""
    images: Path | None = None
    """JSON file whose images (id, width, height, and movie and timestamp or file_name) boxes in pixels refer to, such as
    VideoMAE-Action-Detection's ava_val_v2.2_min.json; default: those in the file itself."""
    size: Annotated[str, AfterValidator(_check_size)] | None = None
    """Width and height in pixels of all pictures, such as 1920x1080, to write coco without --images."""
    category: Whole | None = None
    """Id of persons in COCO's results; default: of the category named person, else 1."""
    weights: Path | None = None
    """File of the detector's weights, such as torchvision publishes; nothing is fetched."""
    detector: str = "fasterrcnn_resnet50_fpn_v2"
    """Name of a detector of torchvision, or module:function of your own: called with the file of weights and the device, it
    returns a function from a list of pictures, uint8 (H, W, 3), to (n, 5) for each: x1, y1, x2, y2 in pixels, and score."""
    label: Whole = 1
    """The detector's label of persons."""
    threshold: Part = 0.05
    """Boxes with a lower score are left out; training and tests have a threshold of their own."""
    short_side: Edge | None = None
    """Short side in pixels that the detector brings pictures to; default: its own, which is 800 for most."""
    smallest: Size = 1
    """Boxes whose width or height is smaller, in pixels of the video, are left out."""
    batch: Count = 4
    """Pictures that the detector sees at once."""
    kind: VideosAre = "movies"
    """How videos are kept: movies, clips of one second, or folders of frames."""
    video_starts_s: Seconds = 0.0
    """Time in seconds of the first frame of movies and of folders of frames: 900 for AVA's, cut to minutes 15 to 30."""
    video_starts: Path | None = None
    """File with a line `video,seconds` for each video that begins at another time than --video-starts-s."""
    frames_fps: Size = 30
    """With --kind frames: pictures a second."""
    reader: str = "pyav"
    """Reader of videos, as --data.reader in training."""
    timeout_s: ReadLimit = 60
    """Seconds after which reading a video is given up."""
    max_bad_share: Part = 0.1
    """Largest share of key frames that may be unreadable; with more the command ends with exit code 77, after writing."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the result as JSON."""

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> AvaBoxesArguments:
        asked = [name for name in ("convert", "from_coco", "videos") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError("give one of --convert IN OUT, --from-coco FILE and --videos FOLDER")
        if self.convert is None and (self.out is None or self.truth is None):
            raise ValueError(f"--{asked[0].replace('_', '-')} needs --out FILE, and --truth FILE for the key frames")
        if self.convert is not None and self.out is not None:
            raise ValueError("--convert names the file to write itself: leave --out away")
        if self.videos is not None and self.weights is None:
            raise ValueError(
                "--videos needs --weights FILE, a file of the detector's weights: nothing is fetched. Those of torchvision are "
                "listed on its pages of object detection, such as fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
            )
        return self

    @property
    def written(self) -> Path:
        """The file to write."""
        out = self.out if self.convert is None else self.convert[1]
        assert out is not None, "checked"
        return out

    @property
    def form(self) -> FormatName:
        """Whose form it has; raises ConfigError where nothing tells."""
        form = self.to or FORM_OF.get(self.written.suffix.lower())
        if form is None:
            raise ConfigError(
                f"{self.written}: its ending tells no form; give --to coco, videomae_ad, pyslowfast or mmaction2"
            )
        return form


class Boxed(NamedTuple):
    """What came of it."""

    file: Path
    form: FormatName
    frames: int
    boxes: int
    notes: tuple[str, ...]
    recalls: list[Recall]
    """Empty without truth."""

    def json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "file": str(self.file),
            "form": self.form,
            "key_frames": self.frames,
            "boxes": self.boxes,
            "notes": list(self.notes),
            "by_threshold": [recall.json() for recall in self.recalls],
        }

    def __str__(self) -> str:
        said = [*self.notes]
        said.append(
            f"{counted(self.boxes, 'box', 'boxes')} at {counted(self.frames, 'key frame')}, {self.form}: wrote {self.file}"
        )
        return "\n".join([*said, *([describe_recalls(self.recalls)] if self.recalls else [])])


def check_written(asked: AvaBoxesArguments) -> None:
    """Raises ConfigError where the file cannot be written, or is there."""
    inputs = [asked.from_coco, asked.images, asked.weights, asked.convert and asked.convert[0], asked.truth]
    inputs.append(asked.video_starts)
    assert asked.form, "known, or an error"
    check_out_file(
        asked.written, "OUT" if asked.convert else "--out", [one for one in inputs if one is not None], lambda _: False
    )


def written(asked: AvaBoxesArguments, boxes: PersonBoxes, truth: BoxRows | None) -> Boxed:
    """Write boxes as asked, and hold them against the truth."""
    images = boxes.images if asked.images is None else read_image_table(asked.images)
    if asked.size is not None:
        width, height = asked.size.split("x")
        images = table_of_size(boxes, (float(width), float(height)))
    try:
        write_person_boxes(boxes, asked.written, asked.form, images)
    except OSError as error:
        raise ConfigError(f"{asked.written}: {error.strerror}; nothing was written") from None
    recalls = recalls_of(truth, boxes) if truth is not None else []
    return Boxed(asked.written, asked.form, len(boxes), len(boxes.box_N5), boxes.notes, recalls)
