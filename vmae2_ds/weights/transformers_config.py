"""config.json of the transformers VideoMAE classes, from and to a model config: plain values, no import of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vmae2_ds.config.any_model import AnyModel
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.block import NORM_EPS
from vmae2_ds.weights.about import AboutWeights, names_for


def transformers_config_of(
    config: EncoderConfig, geometry: ClipGeometry, about: AboutWeights | None = None
) -> dict[str, Any]:
    """The fields of a `VideoMAEConfig`; `geometry` is the clip the weights were trained on.

    What `about` does not say is as published: the decoder's target is normalised, and classes have numbers.
    """
    about = about or AboutWeights()
    encoder = config.encoder
    fields = {
        "model_type": "videomae",
        "image_size": geometry.height,
        "patch_size": config.patch,
        "num_channels": 3,
        "num_frames": geometry.num_frames,
        "tubelet_size": config.tubelet,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": NORM_EPS,
        "qv_bias": True,
    }
    if isinstance(config, ModelConfig):
        decoder = config.decoder
        return fields | {
            "architectures": ["VideoMAEForPreTraining"],
            "use_mean_pooling": False,  # True leaves out the encoder's final norm
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.mlp,
            "norm_pix_loss": about.target != "pixels",
        }
    assert isinstance(config, ClassifierConfig), f"a model of {type(config).__name__}"
    names = about.labels or tuple(f"LABEL_{label}" for label in range(config.num_classes))
    return fields | {
        "architectures": ["VideoMAEForVideoClassification"],
        "use_mean_pooling": True,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def about_transformers(fields: Mapping[str, Any], model: AnyModel) -> AboutWeights:
    """What a VideoMAE config.json says besides: the target of a decoder, names of classes, frames and size of clips."""
    clip = {"num_frames": fields.get("num_frames"), "size": fields.get("image_size")}
    clip = {name: value for name, value in clip.items() if isinstance(value, int) and value > 0}
    if isinstance(model, ModelConfig):
        return AboutWeights(model, "normalised" if fields.get("norm_pix_loss", True) else "pixels", clip=clip)
    named = fields.get("id2label")
    numbers = [str(label) for label in range(model.num_classes)]
    names = [named.get(number) for number in numbers] if isinstance(named, Mapping) else []
    has_names = names != [f"LABEL_{number}" for number in numbers]  # what transformers writes where nobody said any
    return AboutWeights(model, labels=names_for(names, model) if has_names else None, clip=clip)


def _classes(fields: Mapping[str, Any]) -> int:
    """Names of two classes that nobody named are left out of the file, as every default is."""
    return len(fields.get("id2label", range(fields.get("num_labels", 2))))


def config_of_transformers(fields: Mapping[str, Any]) -> AnyModel:
    """The model of a VideoMAE config.json. Raises CheckpointError for one that our models do not compute."""
    try:
        encoder = TowerConfig(
            width=fields["hidden_size"],
            depth=fields["num_hidden_layers"],
            heads=fields["num_attention_heads"],
            mlp=fields["intermediate_size"],
        )
        shape = {"encoder": encoder, "patch": fields["patch_size"], "tubelet": fields["tubelet_size"]}
        (architecture,) = fields.get("architectures") or ["none"]
        has_biases = fields.get("qv_bias", fields.get("qkv_bias", True))  # the second in 5.6 to 5.17
        if fields["model_type"] != "videomae" or fields.get("hidden_act", "gelu") != "gelu" or not has_biases:
            raise CheckpointError("config.json is not of a VideoMAE with exact GELU and q and v biases")
        if architecture == "VideoMAEForVideoClassification" and fields.get("use_mean_pooling", True):
            return ClassifierConfig.model_validate({**shape, "num_classes": _classes(fields)})
        if architecture == "VideoMAEForPreTraining" and not fields.get("use_mean_pooling", True):
            decoder = TowerConfig(
                width=fields["decoder_hidden_size"],
                depth=fields["decoder_num_hidden_layers"],
                heads=fields["decoder_num_attention_heads"],
                mlp=fields["decoder_intermediate_size"],
            )
            return ModelConfig.model_validate({**shape, "decoder": decoder})
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(f"config.json is of no model: {where}: {error.errors()[0]['msg']}") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json is not one of a VideoMAE: {error}") from None
    raise CheckpointError(
        f"config.json is of {architecture} with use_mean_pooling={fields.get('use_mean_pooling')}: read are "
        "VideoMAEForPreTraining without mean pooling and VideoMAEForVideoClassification with it"
    )
