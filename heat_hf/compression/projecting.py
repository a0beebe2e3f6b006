"""From the dense weights of a few layers to the cores that they get: one by one, or two that lose neurons together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.reporting import Reached
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats import PAIRED
from heat_hf.formats.decomposition import Factorization, approximation_errors, decompose, match_variance, narrow
from heat_hf.formats.setting import TensorSetting
from heat_hf.search.ranks.space import Settings
from heat_hf.search.ranks.widths import narrowed


def require_pairs(pairs: Mapping[str, str], settings: Settings, calibrated: bool) -> None:
    """Make sure that neurons go from both of two matrices, or from neither.

    Args:
        pairs: linears that widen a feed-forward network → those that read it.
        settings: of all matrices.
        calibrated: whether there is calibration data.

    Raises:
        ValueError: if a matrix with fewer inputs or outputs has no partner of the same width, or there is no calibration data.
    """
    alone = {name: setting for name, setting in settings.items() if setting is not None and setting.format in PAIRED}
    if alone and not calibrated:
        raise ValueError(f"{next(iter(alone.values())).format} needs a calibration_dataset: it tells which neurons are missed")
    for first, second in pairs.items():
        one, other = settings.get(first), settings.get(second)
        if one is not None and other is not None and (one, other) == narrowed((one.size, other.size), one.rank[0]):
            alone = {name: setting for name, setting in alone.items() if name not in (first, second)}
    for name, setting in alone.items():
        raise ValueError(
            f"{name} cannot get {setting.format} of width {setting.rank[0]}: the other matrix of its feed-forward network must "
            "get the same width"
        )


@dataclass(frozen=True)
class Projection:
    """How weights become cores.

    Attributes:
        linears: by name.
        settings: by name.
        pairs: as for `require_pairs`.
        config: the request.
    """

    linears: Mapping[str, nn.Linear]
    settings: Settings
    pairs: Mapping[str, str]
    config: HeatConfig

    def reached(self, names: Sequence[str], statistics: Statistics | None) -> Iterator[tuple[str, Reached]]:
        """Factorizations of some layers, both of a pair among them; one after the other.

        Args:
            names: of layers with a setting.
            statistics: of these layers; None without calibration data.
        """
        firsts = {second: first for first, second in self.pairs.items()}
        for name in names:
            setting = self.settings[name]
            assert setting is not None
            if setting.format not in PAIRED:
                yield name, Reached(setting, self._alone(name, setting, statistics))
            elif name in firsts:
                assert statistics is not None
                first = firsts[name]
                weights = self.linears[first].weight, self.linears[name].weight
                moments = statistics.moments(name, self.config.uses_gradients)
                for one, result in zip((first, name), narrow(*weights, setting.rank[0], *moments), strict=True):
                    yield one, Reached(self.settings[one], result)

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
