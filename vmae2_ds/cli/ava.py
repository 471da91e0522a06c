"""The verbs of `vmae2 ava`, a function each, as in verbs.py: who does what in the pictures of videos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vmae2_ds.cli.answers import Verb, say_once, show_answer
from vmae2_ds.cli.parse import call
from vmae2_ds.console.terminal import say
from vmae2_ds.errors import EXIT_USER_ERROR


def ava_detect(args: list[str]) -> None:
    """Say what the people in boxes do at key frames, and write it as AVA's csv."""
    from vmae2_ds.downstream.ava.detect import AvaDetectArguments
    from vmae2_ds.downstream.ava.detect import ava_detect as run

    result = call(run, AvaDetectArguments, "vmae2 ava detect", args)
    say_once(str(result))


def ava_score(args: list[str]) -> None:
    """Score what people were said to do (frame mAP) by the rules of a published scorer of AVA."""
    from vmae2_ds.downstream.ava.score_report import AvaScoreArguments, describe, score, scores_json

    def shown(asked: AvaScoreArguments) -> Mapping[str, Any] | str:
        return scores_json(score(asked)) if asked.json_ else describe(score(asked))

    show_answer(call(shown, AvaScoreArguments, "vmae2 ava score", args))


def ava_check(args: list[str]) -> None:
    """Say what is wrong with a set in AVA's form before a training fails on it."""
    from vmae2_ds.downstream.ava.check import AvaCheckArguments
    from vmae2_ds.downstream.ava.check import ava_check as run

    def shown(asked: AvaCheckArguments) -> tuple[Mapping[str, Any] | str, bool]:
        result = run(asked)
        return result.json() if asked.json_ else str(result), result.would_fail

    said, would_fail = call(shown, AvaCheckArguments, "vmae2 ava check", args)
    show_answer(said)
    if would_fail:
        raise SystemExit(EXIT_USER_ERROR)


def ava_boxes(args: list[str]) -> None:
    """Make a file of persons' boxes: from another form, from a detector's results, or from videos."""
    from vmae2_ds.downstream.ava.box_arguments import AvaBoxesArguments, Boxed
    from vmae2_ds.downstream.ava.boxes import ava_boxes as run

    def shown(asked: AvaBoxesArguments) -> Mapping[str, Any] | str:
        result: Boxed = run(asked)
        return result.json() if asked.json_ else str(result)

    said = call(shown, AvaBoxesArguments, "vmae2 ava boxes", args)
    say_once(said if isinstance(said, str) else json.dumps(said))


def ava_score_tubes(args: list[str]) -> None:
    """Score action tubes (video mAP, frame mAP) by the rules of UCF101-24, JHMDB or MultiSports."""
    from vmae2_ds.downstream.ava.tube_report import ScoreTubesArguments, describe, score, scores_json

    def shown(asked: ScoreTubesArguments) -> Mapping[str, Any] | str:
        return scores_json(score(asked)) if asked.json_ else describe(score(asked))

    show_answer(call(shown, ScoreTubesArguments, "vmae2 ava score-tubes", args))


def ava_convert(args: list[str]) -> None:
    """Turn annotations of UCF101-24, JHMDB or MultiSports into AVA's csv."""
    from vmae2_ds.downstream.ava.tube_convert import ConvertArguments, convert

    say(str(call(convert, ConvertArguments, "vmae2 ava convert", args)))


def ava_show(args: list[str]) -> None:
    """Draw people in boxes, truth beside predictions: a picture or animation of a video, or a page of all."""
    from vmae2_ds.downstream.ava.show import AvaShowArguments
    from vmae2_ds.downstream.ava.show import show as run

    say(str(call(run, AvaShowArguments, "vmae2 ava show", args)))


AVA_VERBS: dict[str, Verb] = {
    "ava detect": ava_detect,
    "ava score": ava_score,
    "ava score-tubes": ava_score_tubes,
    "ava convert": ava_convert,
    "ava boxes": ava_boxes,
    "ava show": ava_show,
    "ava check": ava_check,
}
