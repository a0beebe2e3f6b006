"""The accuracy predictor: a random forest from the ranks of a network to its accuracy (paper, section 2.2.2, Fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heat_hf.search.ranks.space import Choice, RankSpace

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.isotonic import IsotonicRegression

Array = NDArray[np.float64]
HELD_OUT = 0.2
LEAST_CORRELATION = 0.6  # Spearman's, on held-out networks; a search by worse predictions is a search by noise
TREES = 200


class UntrustedPredictorError(ValueError):
    """The predictor's order of networks it has not seen is too far from the measured one."""


@dataclass(frozen=True)
class Fidelity:
    """How predictions agree with measurements on networks that were not fitted.

    Attributes:
        spearman, kendall: rank correlations.
        networks: how many.
        measured, predicted: their accuracies.
    """

    spearman: float
    kendall: float
    networks: int
    measured: tuple[float, ...]
    predicted: tuple[float, ...]


class AccuracyPredictor:
    """Accuracy of networks of a space, from shape and rank of their tensors.

    Args:
        space: of the networks.
        seed: of the forest, and of which networks are held out.
        prior: what each option of each tensor is known to lose, tensors × options. Accuracy is then what falls with their
            sum, however it does, and the forest learns what is left.
    """

    def __init__(self, space: RankSpace, seed: int = 0, prior: Array | None = None) -> None:
        self.space = space
        self.seed = seed
        self.prior = prior
        self._falling: IsotonicRegression | None = None
        self._forest: RandomForestRegressor | None = None
        self._features = _features(space)

    def fit(self, choices: Sequence[Choice], accuracies: Sequence[float]) -> Fidelity:
        """Fit to measured networks, less a fifth that is held out and measures the fit.

        Args:
            choices: places of options.
            accuracies: measured, one for each.

        Raises:
            ValueError: for fewer than 20 networks, other numbers of both, or an accuracy that is not finite.
            UntrustedPredictorError: if all held-out networks are alike, or Spearman's correlation on them is below
                `LEAST_CORRELATION`.
        """
        from scipy.stats import kendalltau, spearmanr
        from sklearn.ensemble import RandomForestRegressor
        from sklearn.isotonic import IsotonicRegression

        targets = np.asarray(accuracies, dtype=np.float64)
        if len(choices) < 20 or len(choices) != len(targets) or not np.isfinite(targets).all():
            raise ValueError(f"the predictor needs at least 20 networks with finite accuracies, got {len(choices)}")
        held, fitted = self.split(len(targets))
        count = len(held)
        table = np.stack(choices)
        if self.prior is not None:
            self._falling = IsotonicRegression(increasing=False, out_of_bounds="clip")
            self._falling.fit(self.lost(table[fitted]), targets[fitted])
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=1 / 3, random_state=self.seed, n_jobs=1)
        forest.fit(self.features(table[fitted]), targets[fitted] - self._known(table[fitted]))
        self._forest = forest
        predicted, measured = self.predict(table[held]), targets[held]
        for name, values in (("score", measured), ("were predicted", predicted)):
            if len(set(values)) < 2:
                self._forest = None
                raise UntrustedPredictorError(
                    f"the accuracy predictor has nothing to tell apart: all {count} held-out networks {name} {values[0]:.4f}; "
                    f"evaluate more networks (now {len(targets)}), on more rows, or train the SuperNet longer"
                )
        spearman = float(spearmanr(measured, predicted).statistic)
        kendall = float(kendalltau(measured, predicted).statistic)
        if spearman < LEAST_CORRELATION:
            self._forest = None
            raise UntrustedPredictorError(
                f"the accuracy predictor's rank correlation on {count} held-out networks is {spearman:.2f}, below "
                f"{LEAST_CORRELATION}: evaluate more networks (now {len(targets)}), on more rows, or train the SuperNet longer"
            )
        return Fidelity(spearman, kendall, count, tuple(map(float, measured)), tuple(map(float, predicted)))

    def split(self, networks: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places of the networks that are held out, and of those that are fitted to, of so many."""
        order = np.random.default_rng([self.seed, 2]).permutation(networks)
        count = max(4, round(HELD_OUT * networks))
        return order[:count], order[count:]

    def features(self, choices: Choice) -> Array:
        """For every tensor its ranks and its share of parameters; of the network, the mean of the shares and of their logs.

        Args:
            choices: networks × tensors, places of options.
        """
        rows = np.arange(choices.shape[1])
        by_tensor = self._features[rows, choices]  # networks × tensors × features
        shares = by_tensor[..., 0]
        whole = np.stack([shares.mean(-1), np.log(shares).mean(-1), shares.min(-1)], axis=-1)
        return np.concatenate([by_tensor.reshape(len(choices), -1), whole], axis=-1).astype(np.float32)

    def predict(self, choices: Choice) -> Array:
        """Predicted accuracies of many networks.

        Raises:
            RuntimeError: before `fit`, or after one that is not to be trusted.
        """
        if self._forest is None:
            raise RuntimeError("the predictor is not fitted")
        predicted: Array = self._known(choices) + self._forest.predict(self.features(choices))
        return predicted

    def _known(self, choices: Choice) -> Array:
        """What the prior says of networks; 0 without one."""
        if self._falling is None:
            return np.zeros(len(choices))
        known: Array = self._falling.predict(self.lost(choices))
        return known

    def lost(self, choices: Choice) -> Array:
        """Sums of what the prior says that networks' options lose."""
        assert self.prior is not None
        lost: Array = self.prior[np.arange(choices.shape[1]), choices].sum(-1)
        return lost


def _features(space: RankSpace) -> Array:
    """Tensors × options × features: share of parameters, then ranks and extents of modes, filled up with 0."""
    rows = [
        [[s.ratio, *s.rank, *s.shape.modes] if s is not None else [1.0] for s in options] for options in space.options.values()
    ]
    width = max(len(values) for options in rows for values in options)
    table = np.ones((len(rows), int(space.sizes.max()), width))
    for tensor, options in enumerate(rows):
        for option, values in enumerate(options):
            table[tensor, option] = [*values, *[0.0] * (width - len(values))]
    return table[..., _varying(table)]


def _varying(table: Array) -> NDArray[np.intp]:
    """Features that differ between options of some tensor; the share of parameters always."""
    differs = (table != table[:, :1]).any(axis=(0, 1))
    differs[0] = True
    return np.flatnonzero(differs)
