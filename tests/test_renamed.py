"""Former names of arguments serve on, with a warning."""

import inspect

import pytest
import torch

import sampla
from sampla.core.renamed import renamed_argument


@renamed_argument("colour", "shade", "1.2.0", {"red": 1, "blue": 2})
def painted(wall: str, *, shade: int = 0) -> tuple[str, int]:
    """Of a wall."""
    return wall, shade


def test_the_former_name_is_understood_and_the_new_one_is_said() -> None:
    with pytest.warns(FutureWarning, match=r"colour= is called shade= since version 1\.2\.0 .* shade=2\.") as seen:
        assert painted("a", colour="blue") == ("a", 2)
    assert seen[0].filename == __file__
    assert painted("a", shade=3) == ("a", 3)
    assert painted("a") == ("a", 0)


def test_both_names_and_unknown_values_are_refused() -> None:
    with pytest.raises(TypeError, match="expected shade= alone, got colour= too"):
        painted("a", shade=1, colour="red")
    with pytest.raises(ValueError, match=r"expected colour= one of \['red', 'blue'\], got 'green'"):
        painted("a", colour="green")


def test_autocast_is_called_precision() -> None:
    net = torch.nn.Linear(2, 2).eval()
    with pytest.warns(FutureWarning, match="write precision='bfloat16'"):
        assert sampla.LinearisedLaplace(net, autocast=torch.bfloat16).precision == "bfloat16"
    with pytest.warns(FutureWarning, match="write precision='full'"):
        assert sampla.LinearisedLaplace(net, autocast=None).precision == "full"
    assert "precision" in inspect.signature(sampla.LinearisedLaplace).parameters
