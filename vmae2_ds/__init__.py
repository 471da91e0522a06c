"""VideoMAE V2 pre-training on DeepSpeed, and what is needed around it to scale it.

    model = vmae2_ds.load_classifier("W.safetensors")  # a run, a checkpoint, a file, a folder of transformers
    clips = numpy.zeros((2, *model.preprocessing.shape), "uint8")  # two black ones: (B, T, H, W, 3)
    print(dict(zip(model.labels, model(clips)[0].softmax(-1))))

`load_encoder`, `load_classifier` and `load_autoencoder` come with what they need only when they are asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmae2_ds.runs.ready import load_autoencoder, load_classifier, load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_autoencoder", "load_classifier", "load_encoder"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from vmae2_ds.runs import ready

        return getattr(ready, name)
    raise AttributeError(f"module 'vmae2_ds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
