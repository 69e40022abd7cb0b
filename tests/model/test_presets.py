"""Model sizes against the papers' printed counts and against the real model's weights."""

import jax
import jax.numpy as jnp
import pytest

from precisionlm.config import DataConfig, Experiment, TrainingConfig
from precisionlm.errors import UserError
from precisionlm.model.presets import PRESETS, load_experiment, non_embedding_parameters, preset
from precisionlm.model.transformer import Transformer, parameter_counts
from precisionlm.training.optimizer import hyperparameters

PRINTED = {
    "sun-41m": 40_894_464,
    "sun-85m": 84_934_656,
    "sun-154m": 154_140_672,
    "sun-679m": 679_477_248,
    "sun-1.2b": 1_233_125_376,
    "sun-7b": 7_083_130_880,
    "sun-70b": 71_236_059_136,
}
PRINTED_MILLIONS = {"chen-74m": 74.3, "chen-145m": 144.7, "chen-297m": 297.3, "chen-595m": 594.5}
NOMINAL_MILLIONS = {
    "kumar-30m": 30,
    "kumar-60m": 60,
    "kumar-110m": 110,
    "kumar-220m": 220,
    "kumar-440m": 440,
    "kumar-880m": 880,
    "kumar-1.17b": 1170,
    "kumar-1.76b": 1760,
    "chen-973m": 973,
    "chen-2.8b": 2800,
}


def test_counts_are_the_papers():
    counts = {name: non_embedding_parameters(p.model) for name, p in PRESETS.items()}
    assert {name: counts[name] for name in PRINTED} == PRINTED
    assert {name: round(counts[name] / 1e6, 1) for name in PRINTED_MILLIONS} == PRINTED_MILLIONS
    assert {name: counts[name] / 1e6 for name in NOMINAL_MILLIONS} == pytest.approx(NOMINAL_MILLIONS, rel=0.0101)
    assert len(PRINTED) + len(PRINTED_MILLIONS) + len(NOMINAL_MILLIONS) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_counts_the_real_models_weights(name):
    model = preset(name).model
    shapes = jax.eval_shape(
        lambda key: Transformer(model).init(key, jnp.zeros((1, 2), jnp.int32), {}), jax.random.key(0)
    )
    non_embedding, total = parameter_counts(shapes["params"])
    assert non_embedding == non_embedding_parameters(model)
    norms = 2 * model.layers * model.width + model.width
    if model.projection_norm:
        norms += model.layers * (model.width + model.mlp_width)
    assert total == non_embedding + 2 * model.vocab_size * model.width + norms


def peak_rate(name: str) -> float:
    p = preset(name)
    data = DataConfig(path="data", sequence_length=p.sequence_length)
    training = TrainingConfig(steps=1, batch_size=p.batch_size)
    return hyperparameters(Experiment(model=p.model, data=data, optimizer=p.optimizer, training=training))[
        "learning_rate"
    ]


def test_kumars_rates_follow_width_and_depth():
    rates = {name: peak_rate(name) for name in PRESETS if name.startswith("kumar")}
    assert rates["kumar-30m"] == pytest.approx(6e-4)
    width, layers = 2304 / 512, 28 / 10
    assert rates["kumar-1.76b"] == pytest.approx(6e-4 / width / layers**0.5)
    assert list(rates.values()) == sorted(rates.values(), reverse=True)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"no model preset 'sun-41'; did you mean 'sun-41m'\?"):
        preset("sun-41")


def test_a_file_may_name_a_preset(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: sun-41m\nmodel: {qk_norm: true}\ndata: {path: d}\ntraining: {steps: 5, batch_size: 64}\n")
    e, p = load_experiment(path), preset("sun-41m")
    assert e.model == p.model.model_copy(update={"qk_norm": True}) and e.optimizer == p.optimizer
    assert (e.name, e.training.batch_size, e.data.sequence_length) == ("sun-41m", 64, 2048)
    other = load_experiment(path, ["--preset", "kumar-60m", "--training.batch_size", "32"])
    assert other.model == preset("kumar-60m").model and other.optimizer == preset("kumar-60m").optimizer
    assert (other.name, other.training.batch_size, other.training.steps) == ("kumar-60m", 32, 5)
    with pytest.raises(UserError, match="did you mean 'sun-41m'"):
        load_experiment(path, ["--preset", "sun-41"])
