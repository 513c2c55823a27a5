"""Storage: a compressed model → the few tensors of its file, and back, to the bit.

Each compressible layer is one tensor of bytes (see :mod:`lrsearch.compress.packing`). ``REST`` is all
else in the state dict, in its order, shared tensors once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrsearch.compress.apply import channels_kept, compress, outputs_read
from lrsearch.compress.fit import Decomposition
from lrsearch.compress.matricize import to_matrix, to_weight
from lrsearch.compress.modules import CompressedLayer
from lrsearch.compress.packing import Reader, as_bytes, pack, unpack
from lrsearch.compress.rounding import dequantized, quantized, rounded, stored_type
from lrsearch.errors import ConfigError
from lrsearch.spec.layer import LayerSpec
from lrsearch.spec.plan import LayerPlan, Plan
from lrsearch.spec.storage import REST, SCALE_BYTES, ValueType
from lrsearch.spec.unread import followers
from lrsearch.task.forward import state_tensors


@dataclass(frozen=True)
class Storage:
    """How a model's values are stored.

    All are for the weights of ``layers`` too; of the other parameters ``int8`` is for 32-bit matrices, such as those of embeddings
    and of recurrent layers, where it is smaller than 16 bits, and the 16-bit types for all of two or more dimensions. Biases, norms
    and buffers keep their type.

    Args:
        layers: the compressible layers, whether a plan touches them or not.
        values: the type.

    Raises:
        ConfigError: ``int8`` for a model of 16-bit weights.
    """

    layers: tuple[LayerSpec, ...] = ()
    values: ValueType = "float32"

    def __post_init__(self) -> None:
        narrow = [layer.name for layer in self.layers if layer.itemsize <= 2]
        if self.values == "int8" and narrow:
            raise ConfigError(
                "int8 needs a model of 32-bit weights", value=f"16 bits in {narrow[0]}", place="weights.values",
                remedy="Call model.float() first, or store float32, which keeps the 16 bits.",
            )

    def rounded(self, fits: Mapping[str, Decomposition]) -> dict[str, Decomposition]:
        """``fits`` with the values they have once stored.

        Raises:
            ScoreError: a value is too large for the type.
        """
        wide = {layer.name for layer in self.layers if layer.itemsize > 2 and self.values != "float32"}
        return {name: self._rounded(name, fit) if name in wide else fit for name, fit in fits.items()}

    def _rounded(self, name: str, fit: Decomposition) -> Decomposition:
        sparse = rounded(fit.sparse.flatten(0, 1), self.values, name).view_as(fit.sparse)
        return replace(fit, factors=tuple(rounded(f, self.values, name) for f in fit.factors), sparse=sparse)

    @torch.no_grad()
    def round_dense(self, model: nn.Module, besides: Collection[str] = ()) -> None:
        """Round the weights in ``model`` in place, but for the layers in ``besides``.

        Raises:
            ScoreError: a value is too large for the type.
        """
        if self.values == "float32":
            return
        for layer in (layer for layer in self.layers if layer.name not in besides):
            weight = model.get_parameter(f"{layer.name}.weight")
            rows = to_matrix(weight, layer).flatten(0, 1)
            weight.copy_(to_weight(rounded(rows, self.values, layer.name), layer))
        for name, (tensor, stored) in self._rest(model).items():
            if stored != tensor.dtype:
                tensor.copy_(rounded(tensor, self.values, name))

    def rest_bytes(self, model: nn.Module) -> int:
        """Bytes of what no plan changes."""
        return sum(
            tensor.numel() * stored.itemsize + (SCALE_BYTES * len(tensor) if _scaled(tensor, stored) else 0)
            for tensor, stored in self._rest(model).values()
        )

    def _rest(self, model: nn.Module) -> dict[str, tuple[Tensor, torch.dtype]]:
        """What the state dict has besides the layers' weights, and the type each tensor is stored in."""
        layers = {model.get_submodule(name) for layer in self.layers for name in layer.names}
        everywhere = model.named_modules(remove_duplicate=False)
        weights = {f"{name}.{key}" for name, m in everywhere if m in layers for key in m.state_dict() if key != "bias"}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        seen: set[object] = set()
        found: dict[str, tuple[Tensor, torch.dtype]] = {}
        for name, tensor in state_tensors(model).items():
            same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.data_ptr() else name
            if name not in weights and same not in seen:
                narrower = name in parameters and tensor.is_floating_point() and self._suits(tensor)
                found[name] = tensor, stored_type(tensor.dtype, self.values) if narrower else tensor.dtype
                seen.add(same)
        return found

    def _suits(self, parameter: Tensor) -> bool:
        """Whether ``values`` are for ``parameter``, which is none of a layer's."""
        if self.values != "int8":
            return parameter.dim() > 1
        return parameter.dim() == 2 and parameter.itemsize > 2 and parameter.shape[1] > SCALE_BYTES

    def layout(self, model: nn.Module) -> list[list[object]]:
        """What is stored of a model besides values: by this one base model is told from another."""
        layers = [[layer.name, layer.weight_shape, layer.groups] for layer in sorted(self.layers, key=lambda layer: layer.name)]
        return layers + [[name, tuple(tensor.shape), str(tensor.dtype)] for name, (tensor, _) in self._rest(model).items()]

    def pack(self, model: nn.Module) -> dict[str, Tensor]:
        """The bytes of ``model``, whose layers may be compressed: layer name or ``REST`` → uint8.

        Raises:
            ScoreError: a value is too large for the type.
        """
        fits = {layer.name: _decomposition(model, layer) for layer in self.layers}
        read = outputs_read(self._specs, Plan({name: fit.plan for name, fit in fits.items()}), fits)
        packed = {name: pack(fit, self.values, read.get(name)) for name, fit in fits.items()}
        rest = self._rest(model).items()
        return {**packed, REST: as_bytes([part for name, (tensor, stored) in rest for part in self._parts(name, tensor, stored)])}

    def _parts(self, name: str, tensor: Tensor, stored: torch.dtype) -> list[Tensor]:
        """What is stored of a tensor of the rest: scales first, if it has any."""
        if _scaled(tensor, stored):
            integers, scale = quantized(tensor)
            return [scale, integers]
        return [tensor if stored == tensor.dtype else rounded(tensor, self.values, name).to(stored)]

    def unpack(self, packed: Mapping[str, Tensor], base: nn.Module, plan: Plan) -> nn.Module:
        """The model of :meth:`pack`, built like ``base``, which is not changed; each layer is where that of ``base`` is.

        Raises:
            ValueError: the bytes are not those of this plan and base model.
        """
        fits = self._unpacked(packed, base, plan)
        model = compress(base, self.layers, plan, fits)
        replaced = {*plan.layers, *followers(self._specs, plan)}
        for name in replaced:
            model.get_submodule(name).to(base.get_parameter(f"{name}.weight").device)
        state = {f"{n}.weight": to_weight(fit.sparse, fit.layer) for n, fit in fits.items() if n not in replaced}
        if len(packed[REST]) != self.rest_bytes(model):
            raise ValueError(f"{REST} has {len(packed[REST])} bytes, the base model {self.rest_bytes(model)}")
        reader = Reader(packed[REST])
        rest = {name: _read(reader, tensor, stored) for name, (tensor, stored) in self._rest(model).items()}
        model.load_state_dict({**state, **rest}, strict=False)
        return model


    def _unpacked(self, packed: Mapping[str, Tensor], base: nn.Module, plan: Plan) -> dict[str, Decomposition]:
        """What the file says of every layer; of those that read others' outputs first."""
        readers, fits = followers(self._specs, plan), dict[str, Decomposition]()

        def read(name: str) -> Decomposition:
            if name not in fits:
                dtype = base.get_parameter(f"{name}.weight").dtype
                outputs = channels_kept(read(readers[name])) if name in readers else None
                fits[name] = unpack(packed[name], self._specs[name], plan[name], self.values, dtype, outputs)
            return fits[name]

        return {layer.name: read(layer.name) for layer in self.layers}

    @property
    def _specs(self) -> dict[str, LayerSpec]:
        return {layer.name: layer for layer in self.layers}


def _scaled(tensor: Tensor, stored: torch.dtype) -> bool:
    """Whether ``tensor`` is stored as integers, with a scale for each row."""
    return stored == torch.int8 != tensor.dtype


def _read(reader: Reader, like: Tensor, stored: torch.dtype) -> Tensor:
    """The next tensor of the rest, in the type and shape of ``like``."""
    if _scaled(like, stored):
        scale = reader.take(like.shape[:1], torch.bfloat16)
        return dequantized(reader.take(like.shape, stored), scale).to(like.dtype)
    return reader.take(like.shape, stored).to(like.dtype)


def _decomposition(model: nn.Module, layer: LayerSpec) -> Decomposition:
    """What the layer is in ``model``, compressed or dense."""
    module = model.get_submodule(layer.name)
    if isinstance(module, CompressedLayer):
        return module.decomposition()
    weight = to_matrix(module.get_parameter("weight").detach(), layer)
    return Decomposition(layer, LayerPlan(), (), weight, torch.ones_like(weight, dtype=torch.bool))
