"""FactorizedConfig: what a saved factorized model carries in its config.json."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version
from transformers.utils.quantization_config import QuantizationConfigMixin

from heat_hf.encoders.checkpoints.names import METHOD, SOURCE, package_version
from heat_hf.encoders.values import brief, shown, whole
from heat_hf.formats import GONE
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import SCOPES

logger = logging.getLogger(__name__)
MOST_TENSORS = 20_000  # more than any encoder has; reading stays a matter of seconds
MOST_TOKENS = 2**24


@dataclass
class FactorizedConfig(QuantizationConfigMixin):
    """What loading needs: the `quantization_config` of a factorized model. How it was asked for is in its report.

    Args:
        tensors: module name → what the matrix got; at least one, or embeddings.
        tokens: tokens of a forward pass for which contraction paths are chosen; any number can be run.
        accelerator: name of the hardware that settings were chosen for, or costs reported for; None without.
        embeddings: name of the word embeddings → their rank; None where they are dense.
        blocks: of the dense model's blocks, counted from 0, the last that each block stands for; None where none was dropped.
        shared_encoders: which layers on tiles share what encodes and decodes them, "size" or "model"; None if none do.
        heat_version: version of heat_hf that factorized the model.
        weights_file: name of the weights file, if not the usual one. Set on saving.
        checksum: of the weights files, see `checkpoints.weights.checksum`; None: they are not compared. Set on saving.

    Raises:
        ValueError: if there are no tensors, or a setting or another field is not valid.
    """

    quant_method: str = field(default=METHOD, init=False)  # type: ignore[assignment]
    tensors: dict[str, TensorSetting] = field(default_factory=dict)
    tokens: int = 128
    accelerator: str | None = None
    embeddings: dict[str, int] | None = None
    blocks: list[int] | None = None
    shared_encoders: str | None = None
    heat_version: str | None = None
    weights_file: str | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tensors, Mapping) or not (self.tensors or self.embeddings):
            raise ValueError("the checkpoint's quantization_config has method 'heat' but no tensors: it is damaged")
        if len(self.tensors) > MOST_TENSORS:
            raise ValueError(
                f"the quantization_config has {len(self.tensors)} tensors, more than {MOST_TENSORS}: it is damaged"
            )
        self.tensors = {name: _setting(name, setting) for name, setting in self.tensors.items()}
        whole("tokens of the quantization_config", self.tokens, 1, MOST_TOKENS)
        if self.embeddings is not None:
            self.embeddings = _ranks("embeddings of the quantization_config", self.embeddings)
        if self.blocks is not None:
            self.blocks = _rising("blocks of the quantization_config", self.blocks)
        for name in ("accelerator", "heat_version", "weights_file", "checksum"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} of the quantization_config must be text, got {shown(value)}")
        if self.shared_encoders not in (None, *SCOPES):
            raise ValueError(
                f"shared_encoders of the quantization_config must be size or model, got {shown(self.shared_encoders)}"
            )
        _check_version(self.heat_version)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without what is None."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["tensors"] = {name: setting.to_dict() for name, setting in self.tensors.items()}
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401
        """Read what `to_dict` wrote.

        Raises:
            ValueError: if the method is not "heat" or a field is unknown (written by a newer version).
        """
        data = {**config_dict, **kwargs}
        if data.pop("quant_method", METHOD) != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {shown(config_dict['quant_method'])}")
        unknown = set(data) - {f.name for f in dataclasses.fields(cls) if f.init}
        if unknown:
            raise ValueError(
                f"unknown options {shown(sorted(unknown))} in a heat quantization_config "
                f"(written by heat_hf {brief(str(data.get('heat_version', 'unknown')))}, this is {package_version()})"
            )
        config = cls(**data)
        return (config, {}) if return_unused_kwargs else config


def _ranks(name: str, value: Any) -> dict[str, int]:  # noqa: ANN401
    if not isinstance(value, Mapping) or not 0 < len(value) <= MOST_TENSORS or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping from names to ranks, got {shown(value)}")
    return {key: whole(f"the rank of {shown(key)} in {name}", rank, 1, MOST_TOKENS) for key, rank in value.items()}


def _rising(name: str, value: Any) -> list[int]:  # noqa: ANN401
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MOST_TENSORS:
        raise ValueError(f"{name} must be a list of numbers, got {shown(value)}")
    numbers = [whole(f"a number of {name}", one, 0, MOST_TENSORS) for one in value]
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"{name} must rise, got {shown(value)}")
    return numbers


def _setting(name: str, setting: Any) -> TensorSetting:  # noqa: ANN401
    try:
        read = setting if isinstance(setting, TensorSetting) else TensorSetting.from_dict(setting)
        if read.format in GONE:
            raise ValueError(f"a {read.format} matrix is in no model")
        return read
    except (ValueError, TypeError) as error:
        raise ValueError(f"the quantization_config's setting of {shown(name)} is damaged: {brief(str(error))}") from error


@functools.cache
def _check_version(written: str | None) -> None:
    """Say once if a version is newer than this one: what its numbers mean may have changed."""
    if written is None:
        return
    try:
        newer = Version(written) > Version(package_version()) and package_version() != SOURCE
    except ValueError as error:
        raise ValueError(f"heat_version of the quantization_config must be a version, got {shown(written)}") from error
    if newer:
        logger.warning("a checkpoint was written by heat_hf %s, this is %s: update heat_hf", shown(written), package_version())


def require_dense(config: Any) -> None:  # noqa: ANN401
    """Raise ValueError if a model's configuration is that of a factorized or quantized one."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized.quant_method
    if method == METHOD:
        raise ValueError(
            "the model is compressed by heat_hf already; compress the dense checkpoint it came from, "
            "or call model.dequantize() first to factorize its approximation again"
        )
    raise ValueError(f"the model is quantized with {method}; compress the unquantized checkpoint")
