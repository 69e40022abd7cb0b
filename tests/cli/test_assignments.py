"""One parser for every option that is a list of NAME=VALUE."""

import pytest

from precisionlm.cli.assignments import assignments, numbers
from precisionlm.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("N=N_params,loss=val_loss", {"N": "N_params", "loss": "val_loss"}),
        (" N = size , D = tokens ,", {"N": "size", "D": "tokens"}),
        ("N=`N (M), all`*1e6,D=D", {"N": "`N (M), all`*1e6", "D": "D"}),
        ("forward=w_bits in [4, 8],n=w_bits==4", {"forward": "w_bits in [4, 8]", "n": "w_bits==4"}),
        ("P='a,b',E=(1,2)", {"P": "'a,b'", "E": "(1,2)"}),
        ("delta=-1:5", {"delta": "-1:5"}),
    ],
)
def test_lists_are_split_at_their_own_commas(text, expected):
    assert assignments("--columns", text) == expected


@pytest.mark.parametrize("text", ["N", "N:size", "=size", "N=", "N=a,b"])
def test_what_is_no_assignment_names_the_option_and_the_part(text):
    with pytest.raises(UserError, match=f"--columns '{text.split(',')[-1]}': expected NAME=VALUE"):
        assignments("--columns", text)


def test_a_name_stands_once():
    with pytest.raises(UserError, match="N is given twice"):
        assignments("--columns", "N=a,N=b")


def test_numbers():
    assert numbers("--fix", "alpha=0.5,E=1e-3") == {"alpha": 0.5, "E": 1e-3}
    with pytest.raises(UserError, match="--fix 'alpha=x': expected NAME=VALUE with a number"):
        numbers("--fix", "alpha=x")
