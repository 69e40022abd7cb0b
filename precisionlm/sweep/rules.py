"""Learning rates by rule: a peak rate for every row of a sweep from its size, batch and tokens, so that the arms of one
point differ in precision alone."""

from typing import Self

from pydantic import Field, model_validator

from precisionlm.config import Experiment
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.sections import Section


class MuP(Section):
    """rate * base_width / width: the rate of hidden matrices under Adam in muP (Yang et al. 2022, arXiv:2203.03466),
    for the whole model, as Kumar et al. 2024 (arXiv:2411.04330) use it."""

    base_width: int = Field(ge=1, description="model.width at which the rate was found")
    rate: float = Field(gt=0, description="there")

    def peak(self, experiment: Experiment) -> float:
        """The peak learning rate of an experiment."""
        return self.rate * self.base_width / experiment.model.width


class Point(Section):
    """Where a rate was found: N non-embedding parameters, batch and D in tokens."""

    N: float | None = Field(None, gt=0)
    batch: float | None = Field(None, gt=0)
    D: float | None = Field(None, gt=0)


class PowerLaw(Section):
    """rate * (N / N0)^a * (batch / batch0)^b * (D / D0)^c, a fitted law relative to the point (N0, batch0, D0), such
    as that of Li et al. 2025 (arXiv:2503.04715) in N and D. An exponent that is absent is 0."""

    rate: float = Field(gt=0, description="at the point")
    N: float = Field(0.0, description="exponent of the non-embedding parameters")
    batch: float = Field(0.0, description="exponent of the tokens of a step")
    D: float = Field(0.0, description="exponent of the tokens in all")
    at: Point = Point()

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        for name in Point.model_fields:
            if getattr(self, name) and getattr(self.at, name) is None:
                raise ValueError(f"the exponent {name} needs at.{name}, where the rate was found")
        return self

    def peak(self, experiment: Experiment) -> float:
        """The peak learning rate of an experiment."""
        here = {
            "N": non_embedding_parameters(experiment.model),
            "batch": experiment.batch_tokens,
            "D": experiment.tokens,
        }
        rate = self.rate
        for name, value in here.items():
            if exponent := getattr(self, name):
                rate *= (value / getattr(self.at, name)) ** exponent
        return rate


class LearningRate(Section):
    """One of the rules."""

    mup: MuP | None = None
    law: PowerLaw | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.mup is None) == (self.law is None):
            raise ValueError("give one rule: mup or law")
        return self

    def peak(self, experiment: Experiment) -> float:
        """The peak learning rate of an experiment, of six digits: a run id must not hang on the last bit of a power."""
        rule = self.mup or self.law
        assert rule is not None
        return float(f"{rule.peak(experiment):.6g}")
