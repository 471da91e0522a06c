"""The command line: one clear line and the right exit code for what is wrong, complete help for what is right."""

from __future__ import annotations

import pytest

from vmae2_ds.cli.main import VERBS, main
from vmae2_ds.recipes.pretrain import RECIPES

FEW_SETTINGS = ("--train.global-batch", "8")
"""A search over 4 micro batches in place of 20 says the same."""


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(args)
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pretain"], ["did you mean 'pretrain'"]),
        (["data", "sinth"], ["did you mean 'data synth'"]),
        (["pretrain", "vit_x"], ["vit_g_pretrain_hybrid"]),
        (["pretrain", "vit_ti_pretrain_desk"], ["no videos named", "--data.manifest"]),
        (["pretrain", "vit_ti_pretrain_desk", "--data.vews", "3"], ["--data.vews", "--data.views"]),
        (
            ["pretrain", "vit_ti_pretrain_desk", "--mask.encoder-ratio", "1.5"],
            ["--mask.encoder-ratio 1.5: less than 1"],
        ),
        (["pretrain", "vit_ti_pretrain_desk", "--model.encoder.heads", "5"], ["width=192", "heads=5"]),
        (["pretrain", "vit_ti_pretrain_desk", "--data.manifest", "nowhere.csv"], ["nowhere.csv"]),
        (["pretrain", "vit_ti_pretrain_desk", "--data.manifest", "x", "--data.size", "60"], ["60", "64"]),
        (["distil", "vit_s_distil_k71"], ["vit_s_distil_k710"]),
        (["distil", "vit_ti_distil_desk"], ["no videos named", "--data.manifest"]),
        (["distil", "vit_ti_distil_desk", "--teachr", "x"], ["--teachr", "--teacher"]),
        (["distil", "vit_ti_distil_desk", "--distil.alpha", "1.5"], ["--distil.alpha 1.5: at most 1"]),
        (
            ["distil", "vit_ti_distil_desk", "--distil.alpha", "0"],
            ["--distil.alpha 0", "leave the teacher unused; that is"],
        ),
        (["visualize", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "--out", "x.pth"], ["nowhere"]),
        (["import", "nowhere.pth", "--out", "x.safetensors"], ["nowhere.pth"]),
        (["data", "synth"], ["PATH"]),
        (["flops", "--model", "gigantic"], ["gigantic", "giant"]),
        (["flops", "--size", "225"], ["225", "224"]),
        (["flops", "--mask.decoder-ratio", "0.3"], ["0.3", "0.25, 0.5 or 0.75"]),
        (["flops", "--clips", "0"], ["--clips 0: at least 1"]),
        (["flops", "--checkpoint-every", "0"], ["--checkpoint-every 0: at least 1"]),
        (["memory", "--checkpoint-every", "0"], ["--checkpoint-every 0: at least 1"]),
        (["memory", "--ds-config", "zeropp", "--gpus", "12"], ["zero_hpz_partition_size=8", "12 GPUs"]),
        (["memory", "--gpus", "0"], ["--gpus 0: at least 1"]),
        (["memory", "--ds-config", "zero9"], ["zero9", "zero3"]),
        (["memory", "--ds-config", "zero0"], ["stage 0", "zero1"]),
        (["plan"], ["--gpus", "--gpu"]),
        (["plan", "--gpus", "8", "--gpu", "h100"], ["vit_g_pretrain_hybrid"]),
        (["plan", "vit_x", "--gpus", "8", "--gpu", "h100"], ["vit_x"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "0", "--gpu", "h100"], ["--gpus 0: at least 1"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--nodes", "0"], ["--nodes 0: at least 1"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "A100"], ["did you mean 'a100-40g' or 'a100-80g'"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h1000"], ["did you mean 'h100'", "gpu.json"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "eight", "--gpu", "h100"], ["--gpus", "eight"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "7", "--gpu", "h100"], ["4096", "7 ranks"]),
        (["plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--model.dpth", "3"], ["--model.dpth"]),
        (
            ["plan", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--train.ds-config", "z.json"],
            ["no file z.json"],
        ),
        (["tune", "vit_b_pretrain_hybrid", "--gpus", "7", "--gpu", "h100"], ["4096", "7 GPUs", "--gpus 4"]),
        (
            ["tune", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--data.views", "3"],
            ["4096", "try --train.global-batch 4080 or 4104"],
        ),
        (["tune", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--out", "tuned"], ["--out tuned", ".json"]),
        (["tune", "vit_b_pretrain_hybrid", "--gpus", "8", "--gpu", "h100", "--hostfile", "none"], ["--hostfile none"]),
        (
            ["tune", "vit_6b_pretrain_plan", "--gpus", "1", "--gpu", "rtx-4090", "--host-memory", "20", *FEW_SETTINGS],
            ["nothing fits", "GiB of host memory a GPU"],
        ),
        (["tune", "vit_6b_pretrain_plan", "--gpus", "1", "--gpu", "t4"], ["no bf16 peak", "fp16, fp32"]),
        (
            ["tune", "vit_6b_pretrain_plan", "--gpus", "1", "--gpu", "l4", "--memory", "1.5", *FEW_SETTINGS],
            ["nothing fits", "GiB"],
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(args, capsys)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("vmae2: ")
    for part in parts:
        assert part in line
    assert "Traceback" not in err


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    for word in (*VERBS, "75", "76", "77"):
        assert word in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run([*verb.split(), "--help"], capsys)
    assert code == 0
    assert "usage" in out


def test_recipe_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    from vmae2_ds.config.pretrain import StrictModel

    _, out, _ = run(["pretrain", "vit_ti_pretrain_desk", "--help"], capsys)
    told = " ".join(out.replace("│", " ").split())
    assert "--train.max-nonfinite-steps" in told
    for model in StrictModel.__subclasses__():
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no help text"


def test_pretrain_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(["pretrain", "--help"], capsys)
    for name in RECIPES:
        assert name in out


def test_the_launcher_s_local_rank_argument_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["--local_rank=1", "--version"], capsys)
    assert code == 0
    assert out.strip()
