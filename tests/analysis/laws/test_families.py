"""A law adapts to what the rows can determine and says what it left out."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import analyze, select
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.errors import UserError


def runs(widths, **columns):
    """3 sizes x 3 budgets x widths (columns w_bits, a_bits, ... as given)."""
    names = list(widths[0])
    rows = [(n, d, *w.values()) for n in (3e7, 1e8, 3e8) for d in (1e9, 4e9, 1.6e10) for w in widths]
    return pd.DataFrame(rows, columns=["N_params", "D_tokens", *names]).assign(
        val_loss=lambda f: 2 + 400 * f.N_params**-0.34 + 900 * f.D_tokens**-0.3, **columns
    )


def bits(*pairs):
    return [{"w_bits": float(w), "a_bits": float(a)} for w, a in pairs]


@pytest.mark.parametrize(
    ("widths", "constants", "said"),
    [
        # W = A in every row: one factor stands for both.
        (bits((16, 16), (8, 8), (4, 4), (3, 3), (2, 2)), ["gamma_w", "n_w"], "f_a is left out"),
        (bits((16, 16), (8, 16), (4, 16), (16, 8), (16, 4)), ["gamma_w", "n_w", "gamma_a", "n_a"], ""),
        (bits((16, 16), (8, 16), (4, 16), (4, 8), (8, 4)), ["gamma_w", "n_w", "gamma_a", "n_a"], ""),
        (bits((16, 16), (8, 16), (4, 16), (4, 8)), ["gamma_w", "n_w", "gamma_a"], "n_a is held at 0"),
        (bits((16, 16), (4, 16)), ["gamma_w"], "n_w is held at 0: weights were trained at only two widths"),
        (bits((4, 16), (4, 8), (4, 4)), ["gamma_a", "n_a"], "f_w is left out: weights have 4 bits in every row"),
        (
            bits(
                (16, 16),
            ),
            [],
            "",
        ),
        # Activations follow from the weights without being equal.
        (bits((16, 16), (8, 16), (4, 8), (3, 8), (2, 8)), ["gamma_w", "n_w"], "f_a is left out"),
    ],
)
def test_kumar_keeps_the_factors_that_the_widths_tell_apart(widths, constants, said):
    law = select("kumar", runs(widths)).law
    free = [p.name for p in law.parameters if p.held is None]
    assert [name for name in free if name not in ("A", "alpha", "B", "E")] == constants
    assert (said in " ".join(law.notes)) if said else not law.notes


@pytest.mark.parametrize(
    ("widths", "constants", "said"),
    [
        (bits((16, 16), (8, 8), (4, 4), (3, 3)), ["C_w", "gamma_w"], "C_a is left out"),
        (bits((16, 16), (8, 16), (4, 16), (16, 8), (16, 4)), ["C_w", "C_a", "gamma_w", "gamma_a"], "C_kv is left out"),
        (bits((16, 16), (4, 16)), ["C_w"], "gamma_w is held at 1 bit: too few widths of weights to tell it"),
    ],
)
def test_costs_of_the_operands_that_the_widths_tell_apart(widths, constants, said):
    law = select("operand_costs", runs(widths)).law
    free = [p.name for p in law.parameters if p.held is None]
    assert [n for n in free if n not in ("A", "alpha", "B", "beta", "E", "gamma_D", "gamma_N")] == constants
    assert said in " ".join(law.notes)
    with pytest.raises(
        UserError, match=r"operand_costs needs one column of w_bits \(P_w\), .* with two widths or more"
    ):
        select("operand_costs", runs(bits((16, 16))))


def test_kumar_reads_the_columns_that_are_there():
    frame = runs(bits((16, 16), (8, 8), (4, 8), (3, 4)))
    for name in ("kumar", "kumar_unified", "kumar_beta", "kumar_unified_beta"):
        law = select(name, frame.drop(columns="a_bits")).law
        assert "gamma_w" in law.names and "P_a" not in {s.name for s in law.symbols}, name
        assert ("beta" in law.names) == name.endswith("_beta")
    with pytest.raises(UserError, match=r"law kumar needs one column of w_bits \(P_w\)"):
        select("kumar", frame.drop(columns=["a_bits", "w_bits"]))
    with pytest.raises(UserError, match=r"law kumar_neff needs column kv_bits \(P_kv\)"):
        select("kumar_neff", frame)


def test_an_untied_exponent_is_recovered():
    frame = runs(bits((16, 16), (8, 16), (4, 16), (3, 16)))
    law = laws.get("kumar_neff_w_beta")
    truth = {"A": 400.0, "alpha": 0.34, "B": 4000.0, "beta": 0.42, "E": 1.8, "gamma_w": 2.0, "n_w": 0.2}
    columns = {"N": frame.N_params, "D": frame.D_tokens, "P_w": frame.w_bits}
    result = analyze(frame.assign(val_loss=law.predict(truth, columns)), law.name, starts=32).result
    for name, value in truth.items():
        assert result.params[name] == pytest.approx(value, rel=1e-3), name


def levels(frame, reference=""):
    table = select("frantar", frame, {"P": "format"}, choices=Choices(reference=reference))
    return [n for n in table.law.names if n.startswith("eff")], table


def test_references_of_a_text_column():
    formats = [{"format": x} for x in ("BF16", "W=e4m3,A=e4m3", "int4, per token", "mxfp4")]
    names, table = levels(runs(formats))
    assert names == ["eff_W=e4m3,A=e4m3", "eff_int4, per token", "eff_mxfp4"] and not table.law.notes
    names, _ = levels(runs(formats), "W=e4m3,A=e4m3")
    assert names == ["eff_BF16", "eff_int4, per token", "eff_mxfp4"]
    assert levels(runs(formats), "P=mxfp4")[0] == ["eff_BF16", "eff_W=e4m3,A=e4m3", "eff_int4, per token"]
    with pytest.raises(UserError, match="--reference mxfp5: no row has it as P; did you mean 'mxfp4'"):
        levels(runs(formats), "mxfp5")
    names, table = levels(runs(formats[2:]))
    assert names == ["eff_int4, per token"] and "all are measured against 'mxfp4'" in table.law.notes[0]


def test_a_missing_format_is_no_level():
    frame = runs([{"format": x} for x in ("bf16", "int4", None, "  ")])
    names, table = levels(frame)
    assert names == ["eff_int4"] and len(table) == 18 and sum(table.excluded.values()) == 18


def test_quartet_holds_what_no_row_tells():
    frame = runs([{"fwd_format": "bf16", "bwd_format": b} for b in ("bf16", "mxfp4")])
    law = select("quartet", frame).law
    assert law.parameter("eff_N").held == 1.0 and law.notes == (
        "eff_N is held at 1: no row quantizes the forward pass",
    )
    assert [s.free for s in law.stages] == [("A", "alpha", "B", "beta", "gamma", "E"), ("eff_D",)]
    assert select("quartet_schemes", frame).law.names[-1] == "eff_D_mxfp4"


def test_optimizers_have_formats_of_their_own():
    pairs = [("adamw", "bf16"), ("adamw", "int4"), ("muon", "bf16"), ("muon", "int4"), ("soap", "int4")]
    frame = runs([{"optimizer": o, "recipe": f} for o, f in pairs])
    law = select("frantar_optimizer", frame).law
    assert law.names[5:] == ("eff_muon", "eff_adamw:int4", "eff_muon:int4", "eff_soap:int4")
    assert "no unquantized run of soap" in " ".join(law.notes)
    truth = {"A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3, "E": 1.8, "eff_muon": 1.4, "eff_adamw:int4": 0.6,
             "eff_muon:int4": 0.5, "eff_soap:int4": 0.7}  # fmt: skip
    codes = select("frantar_optimizer", frame).columns
    result = analyze(frame.assign(val_loss=law.predict(truth, codes)), "frantar_optimizer", starts=32).result
    for name, value in truth.items():
        assert result.params[name] == pytest.approx(value, rel=1e-3), name
    with pytest.raises(UserError, match="say P=LEVEL or O=LEVEL"):
        select("frantar_optimizer", frame, choices=Choices(reference="muon"))
    other = select("frantar_optimizer", frame, choices=Choices(reference="O=muon")).law
    assert "eff_adamw" in other.names and "eff_muon" not in other.names


def test_schedule_terms_are_kept_where_they_vary():
    frame = runs([{"ptq_bits": 4.0, "final_lr_fraction": r, "schedule": "wsd", "decay_share": s}
                  for r, s in ((0.0, 0.2), (0.1, 0.2), (0.5, 0.8))], gap=0.1)  # fmt: skip
    assert select("kumar_ptq_schedule", frame).law.names[-2:] == ("kappa_r", "kappa_s")
    law = select("kumar_ptq_schedule", frame.drop(columns="decay_share")).law
    assert law.names[-1] == "kappa_r" and "kappa_s is left out: the table has no column" in law.notes[0]
    law = select("kumar_ptq_schedule", frame.assign(decay_share=0.2)).law
    assert law.names[-1] == "kappa_r" and "decay_share does not vary by itself" in law.notes[0]
    cosine = frame.drop(columns="decay_share").assign(schedule="cosine", warmup_steps=[10, 20, 50] * 9, steps=100)
    assert select("kumar_ptq_schedule", cosine).columns["s"][:3] == pytest.approx([0.9, 0.8, 0.5])


def test_a_gap_law_reads_a_gap_or_computes_it_from_a_renamed_loss():
    frame = runs([{"w_bits": b, "w_group": g} for b, g in ((16.0, 1.0), (4.0, 32.0), (4.0, 128.0))])
    frame["val_loss"] += np.where(frame.w_bits < 16, 0.01 * np.log2(frame.w_group), 0.0)
    expected = np.tile([0.05, 0.07], 9)
    computed = select("chen_gap", frame)
    assert computed.observed == pytest.approx(expected)
    renamed = select("chen_gap", frame.rename(columns={"val_loss": "nats"}), {"loss": "nats"})
    assert renamed.observed == pytest.approx(expected)
    measured = frame.assign(measured=np.where(frame.w_bits < 16, 0.3, np.nan))
    assert select("chen_gap", measured, {"gap": "measured"}).observed == pytest.approx(np.full(18, 0.3))
    with pytest.raises(UserError, match=r"no column 'mesured'; did you mean 'measured'"):
        select("chen_gap", measured, {"gap": "mesured"})
