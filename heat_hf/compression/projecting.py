"""From the dense weights of a few layers to the cores that they get: one by one, or several that get theirs together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.reporting import Reached
from heat_hf.encoders.dropping import require_blocks
from heat_hf.encoders.statistics import Statistics
from heat_hf.encoders.together import attention_groups, require_together, width_groups
from heat_hf.formats import GONE, JOINT, OPERATORS, PAIRED, SHARED
from heat_hf.formats.bilinear import Algorithm
from heat_hf.formats.decomposition import Factorization, approximation_errors, decompose, match_variance, narrow, share
from heat_hf.formats.encoding import encode, fitted
from heat_hf.formats.setting import Settings, TensorSetting
from heat_hf.formats.strassen_tile import sharing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _require_calibration(settings: Settings) -> None:
    """Raise ValueError if a setting is of a format that cannot be found without calibration data."""
    for setting in settings.values():
        if setting is not None and setting.format in PAIRED | SHARED:
            told = "which neurons or heads are missed" if setting.format in PAIRED else "which directions of their input matter"
            raise ValueError(f"{setting.format} needs a calibration_dataset: it tells {told}")


@dataclass(frozen=True)
class Projection:
    """How weights become cores.

    Attributes:
        linears: by name.
        settings: by name.
        between: of `width_groups`.
        groups: of `attention_groups`.
        config: the request.
        algorithms: of layers that share encoders, as they are found.
    """

    linears: Mapping[str, nn.Linear]
    settings: Settings
    between: Mapping[tuple[str, ...], int]
    groups: Sequence[tuple[str, ...]]
    config: HeatConfig
    algorithms: dict[tuple[int, ...], Algorithm] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: PreTrainedModel, linears: Mapping[str, nn.Linear], settings: Settings, config: HeatConfig, calibrated: bool
    ) -> Projection:
        """The projection of a model's linears.

        Args:
            model: whose linears they are.
            linears: as above.
            settings: likewise.
            config: likewise.
            calibrated: whether there is calibration data.

        Raises:
            ValueError: if settings that matrices can only get together are not complete, or need calibration data.
        """
        if not calibrated:
            _require_calibration(settings)
        require_together(model, settings)
        require_blocks(model, settings)
        return cls(linears, settings, width_groups(model, linears), attention_groups(model, linears), config)

    def reached(self, names: Sequence[str], statistics: Statistics | None) -> Iterator[tuple[str, Reached]]:
        """Factorizations of some layers, all of a pair or group among them; one after the other.

        Args:
            names: of layers with a setting.
            statistics: of these layers; None without calibration data.
        """
        # Those that get narrower are found where the last of them is met, those with a basis where the first is.
        narrower = {members[-1]: members for members in self.between}
        members = {members[0]: members for members in self.groups}
        for name in names:
            setting = self.settings[name]
            assert setting is not None
            if setting.format in GONE:
                yield name, Reached(setting)
            elif setting.format in OPERATORS:
                yield name, Reached(setting, self._encoded(name, setting, statistics))
            elif setting.format not in JOINT:
                yield name, Reached(setting, self._alone(name, setting, statistics))
            elif setting.format in PAIRED and name in narrower:
                assert statistics is not None
                yield from self._narrower(narrower[name], statistics)
            elif setting.format in SHARED and name in members:
                assert statistics is not None
                yield from self._group(members[name], statistics)

    def _encoded(self, name: str, setting: TensorSetting, statistics: Statistics | None) -> Factorization:
        moments = {} if statistics is None else statistics.tile_moments
        solver, scope, algorithm = self.config.solver, self.config.shared_encoders, None
        if scope is not None:
            key = sharing(setting.shape, setting.rank, scope)
            if key not in self.algorithms:
                own = {other: one for other, one in self.settings.items() if one is not None}
                same = {other: one for other, one in own.items() if sharing(one.shape, one.rank, scope) == key}
                weights, shapes = [self.linears[other].weight for other in same], [one.shape for one in same.values()]
                self.algorithms[key] = fitted(weights, shapes, setting.rank[0], solver, list(map(moments.get, same)))
            algorithm = self.algorithms[key]
        weight = self.linears[name].weight
        return encode(weight, setting.shape, setting.rank, solver, moments.get(name), algorithm)

    def _narrower(self, names: tuple[str, ...], statistics: Statistics) -> Iterator[tuple[str, Reached]]:
        setting = self.settings[names[-1]]
        assert setting is not None
        moments = statistics.moments(names[-1], self.config.uses_gradients)
        weights = [self.linears[name].weight for name in names]
        found = narrow(weights[:-1], weights[-1], setting.rank[0], *moments, size=self.between[names])
        for name, result in zip(names, found, strict=True):
            yield name, Reached(self.settings[name], result)

    def _group(self, names: Sequence[str], statistics: Statistics) -> Iterator[tuple[str, Reached]]:
        setting = self.settings[names[0]]
        assert setting is not None
        moments = [statistics.moments(name, self.config.uses_gradients) for name in names]
        weights = [self.linears[name].weight for name in names]
        assert moments[0][0] is not None
        found = share(weights, setting.rank[0], moments[0][0], [output for _, output in moments])
        for name, result in zip(names, found, strict=True):
            spans = statistics.spans(name)
            yield name, Reached(self.settings[name], result if spans else replace(result, output_error=None))

    def _alone(self, name: str, setting: TensorSetting, statistics: Statistics | None) -> Factorization:
        config, weight = self.config, self.linears[name].weight
        moments: tuple[Tensor | None, Tensor | None] = (None, None)
        if statistics is not None:
            moments = statistics.moments(name, config.uses_gradients)
        result = decompose(setting.codec, weight, setting.shape, setting.rank, config.solver, *moments)
        if config.match_variance:
            cores = match_variance(weight, result.cores, setting.codec, setting.shape)
            error, output_error = approximation_errors(setting.codec, weight, cores, setting.shape, moments[0])
            result = replace(result, cores=cores, relative_error=error, output_error=output_error)
        return result if statistics is None or statistics.spans(name) else replace(result, output_error=None)
