"""What a file is, from its content: for the refusal of files that hold no weights, or those of another network.

kind_of            a file or a folder in words: "a Git LFS pointer"; None for a whole file of tensors
kind_of_tensors    the network whose tensors have these names and shapes: "a LoRA"

Names and suffixes of files do not count. Nothing is executed.
"""

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_HEAD = 4096  # bytes that are looked at first
_LARGEST = 100 << 20  # of a header or a pickle that is read whole


@dataclass(frozen=True)
class Kind:
    """A file in words.

    Args:
        what: what it is: "an HTML page".
        needed: what to do, a clause as in a `Refused`.
    """

    what: str
    needed: str = "a .safetensors file, or what torch.save makes of a state_dict, is needed"


_AGAIN = "download it again"
_UNPACK = "unpack it first"

# (offset, bytes there, what, what to do)
_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"version https://git-lfs", Kind("a Git LFS pointer, not the file itself", "`git lfs pull` fetches the file")),
    (0, b"GGUF", Kind("a GGUF file, quantised weights of llama.cpp")),
    (0, b"lmgg", Kind("a GGML file")),
    (0, b"tjgg", Kind("a GGML file")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras writes")),
    (0, b"\x93NUMPY", Kind("a numpy array (.npy)")),
    (4, b"TFL3", Kind("a model of TensorFlow Lite")),
    (0, b"\x1f\x8b", Kind("a gzip archive", _UNPACK)),
    (0, b"BZh", Kind("a bzip2 archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", Kind("an xz archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("a zstd archive", _UNPACK)),
    (0, b"\x04\x22\x4d\x18", Kind("an lz4 archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (257, b"ustar", Kind("a tar archive", _UNPACK)),
    (0, b"\x89PNG", Kind("a PNG picture")),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture")),
    (0, b"GIF8", Kind("a GIF picture")),
    (0, b"II*\0", Kind("a TIFF picture")),
    (0, b"MM\0*", Kind("a TIFF picture")),
    (8, b"WEBP", Kind("a WebP picture")),
    (4, b"ftypavif", Kind("an AVIF picture")),
    (4, b"ftyp", Kind("a video")),
    (0, b"%PDF", Kind("a PDF document")),
    (0, b"\x7fELF", Kind("a program or a library")),
    (0, b"MZ\x90", Kind("a program or a library")),
    (0, b"SQLite format 3", Kind("a database")),
    (0, b"ptrt", Kind("an engine of TensorRT")),
    (0, b"ftrt", Kind("an engine of TensorRT")),
)
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's number, pickled, before its files were zip archives


def kind_of(path: Path) -> Kind | None:
    """What a file, or a folder, is.

    Args:
        path: a file or a folder that exists.

    Returns:
        Its kind; None for a whole .safetensors or PyTorch file, and for a folder that is not known.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    size = path.stat().st_size
    if size == 0:
        return Kind("an empty file", _AGAIN)
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 8))
        tail = file.read()
    if not any(head):
        return Kind("a file of zeros, as a download that did not end leaves", _AGAIN)
    for offset, magic, kind in _MAGIC:
        if head[offset:].startswith(magic):
            return kind
    if head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == size:
        return Kind("a BMP picture")
    if head.startswith(b"PK"):
        return _archive(path, head)
    if is_safetensors(head):
        return _cut(path, head, size)
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return None if head.startswith(_LEGACY) else _pickle(path)
    if tail == bytes.fromhex("57fb808b247547db"):
        return Kind("the index of a checkpoint of TensorFlow")
    return _text(path, head, size) or _protobuf(head) or _flax(head) or Kind("a file of no known kind")


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is a .safetensors file, whole or not."""
    return len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= _LARGEST and head[8:9] == b"{"


def _cut(path: Path, head: bytes, size: int) -> Kind | None:
    """A .safetensors file that is not whole."""
    length = int.from_bytes(head[:8], "little")
    with path.open("rb") as file:
        header = file.read(8 + length)[8:]
    if len(header) < length:
        return Kind(f"a .safetensors file that is cut off in its header, at {size} bytes", _AGAIN)
    try:
        offsets = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        ends = 8 + length + max(offsets, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Kind("a .safetensors file with a broken header", _AGAIN)
    if size == ends:
        return None
    return Kind(f"a .safetensors file that is {'cut off' if size < ends else 'too long'}, {size} of {ends} bytes", _AGAIN)


def _archive(path: Path, head: bytes) -> Kind | None:
    """A zip archive, which PyTorch's files are too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Kind("a PyTorch file that is cut off" if b"data.pkl" in head else "a zip archive that is cut off", _AGAIN)
    inner = [name.partition("/")[2] for name in names]
    if "data.pkl" in inner:
        if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
            return Kind("a TorchScript archive, a program", "the state_dict of its module is needed, best as .safetensors")
        return None
    if any(name.endswith(("archive_format", "extern_modules")) for name in names):
        return Kind("a program that torch.export or torch.package wrote")
    if names and all(name.endswith(".npy") for name in names):
        return Kind("an archive of numpy arrays (.npz)")
    if "model.weights.h5" in names:
        return Kind("a model of Keras")
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return Kind(f"a zip archive ({shown or 'empty'})", _UNPACK)


def _pickle(path: Path) -> Kind:
    with path.open("rb") as file:
        names = _globals(file.read(_LARGEST))
    return Kind(f"a pickle of Python objects{f' ({names[0]})' if names else ''}, which reading would execute")


def pickled(path: Path) -> str:
    """What a file of PyTorch holds beside tensors, in words: "a checkpoint of PyTorch Lightning"."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except (zipfile.BadZipFile, OSError, ValueError, StopIteration):
        with path.open("rb") as file:
            data = file.read(_LARGEST)
    if b"pytorch-lightning_version" in data:
        return "a checkpoint of PyTorch Lightning"
    return "a whole module" if any(name.startswith("torch.nn.modules") for name in _globals(data)) else "a file"


def _globals(data: bytes) -> list[str]:
    """The names of what a pickle would import."""
    found: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(data)
    try:
        for _ in range(5):  # older files of PyTorch are four pickles
            for code, argument, _ in islice(pickletools.genops(stream), 100_000):
                if code.name == "GLOBAL":
                    found.append(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        pass  # the end of what is a pickle
    return found


def _protobuf(head: bytes) -> Kind | None:
    """Files of ONNX and TensorFlow begin with the first fields of their messages."""
    if head.startswith(b"\x08\x01\x12"):
        return Kind("a model of TensorFlow (saved_model.pb)")
    if head[0] == 8 and 1 < head[1] < 32 and head[2:3] and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
        name = head[4 : 4 + head[3]] if head[2] == 0x12 else b""  # of what wrote it; in Core ML's files a message
        return Kind("an ONNX file" if all(32 <= byte < 127 for byte in name) else "a model of Core ML")
    if head[0] == 0x0A and (b"Const" in head or b"Placeholder" in head):
        return Kind("a graph of TensorFlow (.pb)")
    return None


def _flax(head: bytes) -> Kind | None:
    """MessagePack: a small map whose first key is a short string."""
    if (0x81 <= head[0] <= 0x8F and 0xA1 <= head[1] <= 0xBF) or (head[0] == 0xDE and 0xA1 <= head[3] <= 0xBF):
        return Kind("a file of Flax (.msgpack)")
    return None


def _text(path: Path, head: bytes, size: int) -> Kind | None:
    text = head.decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    if re.search(r"[\0-\x08\x0e-\x1f]", text) or text.count("\ufffd") > 1:  # one where the head ends
        return None
    start = text[:1024].lower()
    if start.startswith("<") and ("<html" in start or "<!doctype html" in start):
        return Kind("an HTML page, as a download that failed leaves", _AGAIN)
    if start.startswith("<"):
        return Kind("an XML document, as a download that failed leaves", _AGAIN)
    if text.startswith(("{", "[")):
        return _json(path, size)
    return Kind("a text file")


def _json(path: Path, size: int) -> Kind:
    content = None
    if size <= _LARGEST:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return Kind("a text file")
    if isinstance(content, Mapping) and "weight_map" in content:
        return Kind("the index of weights in several files", "the folder of their pipeline is needed")
    if isinstance(content, Mapping) and ("_class_name" in content or "architectures" in content):
        return Kind("a configuration, without weights", "the folder of its pipeline is needed")
    return Kind("a JSON file")


def _folder(path: Path) -> Kind | None:
    names = sorted(inside.name for inside in path.iterdir())
    if not names:
        return Kind("an empty folder")
    for name in ("model_index.json", "config.json"):
        if name in names:
            try:
                content = json.loads((path / name).read_bytes())
                of = content.get("_class_name") or content.get("architectures", [None])[0]
            except (ValueError, LookupError, AttributeError, TypeError):
                of = None
            if name == "config.json":
                return Kind(f"a folder of {of or 'a model'} alone", "the folder of a whole pipeline is needed")
            if of == "DoSSRPipeline":
                return Kind("a folder of DoSSRPipeline", "a file is needed; DoSSRPipeline.from_pretrained takes such a folder")
            return Kind(f"a folder of {of}" if of else "a folder with a broken model_index.json")
    if "checkpoints" in names:
        results = [name for name in names if name in ("pipeline", "weights.safetensors")]
        needed = f"{path / results[0]} is its result" if results else "its result, which it writes in the end, is needed"
        return Kind("the folder of a run of `dosde train`", needed)
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return Kind("a distributed checkpoint of PyTorch")
    return Kind("a folder of a model of TensorFlow") if "saved_model.pb" in names else None


# -- Networks -----------------------------------------------------------------------------------------------------------------

Shapes = Mapping[str, Sequence[int]]


def kind_of_tensors(shapes: Shapes, about: Mapping[str, str] | None = None) -> str | None:
    """The network whose tensors have these names and shapes, in words; None if it is not known.

    Args:
        shapes: shapes by name.
        about: the metadata of their file.
    """
    ours = _ours(shapes, about or {})
    return ours or next((what for what, told in _NETWORKS if told(_Names(shapes))), None)


def _ours(shapes: Shapes, about: Mapping[str, str]) -> str | None:
    if "dosde.embedded" in about:
        return "a network of the backbone embedded"
    if "step" in about and any(name.startswith("optimizer.") for name in shapes):
        return "a checkpoint of `dosde train`, whose result is a file or a folder beside it"
    return f"a network that `dosde train` made ({about['network']})" if {"network", "options"} <= about.keys() else None


class _Names:
    """The names of tensors, to be searched."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self._text = shapes, "\n" + "\n".join(shapes)

    def has(self, pattern: str) -> bool:
        """Whether a name begins so."""
        return re.search(rf"\n(?:{pattern})", self._text) is not None

    def all(self, pattern: str) -> bool:
        """Whether all names begin so."""
        return all(re.match(pattern, name) for name in self.shapes)

    def is_one_embedding(self) -> bool:
        """Whether there is one tensor alone, of a width of CLIP."""
        return [tuple(shape)[-1:] for shape in self.shapes.values() if len(shape) < 3] in ([(768,)], [(1024,)], [(1280,)])


def _with(*patterns: str) -> Callable[[_Names], bool]:
    return lambda names: all(names.has(pattern) for pattern in patterns)


RRDBNETS = ("an RRDBNet (ESRGAN, BSRGAN)", "an ESRGAN in its first names")
"""What `kind_of_tensors` says of the networks of `backbones.gan`."""

_UNET = r"model\.diffusion_model\."
_NETWORKS: tuple[tuple[str, Callable[[_Names], bool]], ...] = (  # the first that is told by its names
    ("a LoRA", _with(r".*(lora_(up|down|A|B)\b|\.lora\.|lora_unet_|lora_te|hada_w1|lokr_w|oft_blocks)")),
    ("an IP-adapter", _with(r"(ip_adapter|image_proj)\.")),
    ("a textual inversion", _with(r"(emb_params|string_to_param|clip_[lg])\b")),
    ("a textual inversion", lambda names: names.is_one_embedding()),
    ("a checkpoint of Stable Diffusion XL", _with(rf"(conditioner\.embedders\.|{_UNET}label_emb\.)")),
    ("a checkpoint of Stable Diffusion 3", _with(rf"({_UNET})?joint_blocks\.")),
    ("a checkpoint of Flux", _with(rf"({_UNET})?double_blocks\.")),
    ("a ControlNet of another kind, whose hint is a picture", _with(r"(control_model\.)?input_hint_block\.")),
    ("a checkpoint of DoSSR or DiffBIR", _with(_UNET, r"control_model\.", r"first_stage_model\.")),
    ("a checkpoint of Stable Diffusion 1", _with(_UNET, r"cond_stage_model\.transformer\.")),
    ("a checkpoint of Stable Diffusion 2", _with(_UNET, r"cond_stage_model\.model\.")),
    ("a U-Net alone", _with(_UNET)),
    ("a ControlNet alone", _with(r"(control_model\.|controlnet_down_blocks\.|controlnet_cond_embedding\.)")),
    ("a network of ResShift", _with(r"(module\.)?input_blocks\.0\.0\.weight", r".*relative_position_bias_table")),
    ("a U-Net alone", _with(r"(input_blocks\.0\.0\.weight|down_blocks\.0\.resnets\.0\.time_emb_proj\.)")),
    ("a transformer of diffusion alone", _with(r"transformer_blocks\.0\.")),
    ("an autoencoder of VQGAN", _with(r"(first_stage_model\.)?quantize\.embedding")),
    ("a VAE alone", _with(r"(first_stage_model\.)?encoder\.conv_in", r"(first_stage_model\.)?decoder\.conv_out")),
    ("the encoder of a VAE alone", _with(r"(cond_encoder\.)?encoder\.conv_in")),
    ("a text tower alone", _with(r"(text_model\.|cond_stage_model\.|transformer\.resblocks\.|token_embedding\.)")),
    (RRDBNETS[0], _with(r"(preprocess_model\.)?(body\.0\.rdb1\.|RRDB_trunk\.)")),
    (RRDBNETS[1], _with(r"model\.1\.sub\.0\.RDB1\.")),
    ("a SwinIR", _with(r"conv_first\.", r"layers\.0\.residual_group\.")),
    ("a compact network of Real-ESRGAN", _with(r"body\.0\.weight", r"body\.1\.weight", r"body\.2\.weight")),
    ("a ResNet", _with(r"layer1\.0\.conv1\.", r"fc\.")),
    ("a VGG", _with(r"features\.0\.weight")),
    ("the embeddings of prompts", lambda names: names.all(r"embeddings$")),
    ("the state of an optimizer", lambda n: n.all(r"(optimizer|state|exp_avg)")),
)  # fmt: skip
