"""Which files of weights hold a network of the backbone `gan`: told by the names of their tensors."""

from pathlib import Path


def released(path: str | Path) -> bool:
    """Whether a file holds an RRDBNet alone.

    Raises:
        Refused: it holds no tensors.
    """
    from backbones import kinds, weights

    if not Path(path).is_file():
        return False
    shapes = {name: tensor.shape for name, tensor in weights.read(path).items()}
    own = not any(name.startswith("preprocess_model.") for name in shapes)
    return own and kinds.kind_of_tensors(shapes, weights.metadata(path)) in kinds.RRDBNETS
