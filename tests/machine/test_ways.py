import pytest

from models.machine.errors import InputError
from models.machine.ways import ALL_PLAIN, ALTERNATIVES, NO_ALTERNATIVE, Ways, advice, parse_plain


def test_names_are_read():
    assert parse_plain("all") == frozenset(ALTERNATIVES) == ALL_PLAIN.plain
    assert parse_plain("none") == frozenset()
    assert parse_plain(" norm, halo ,") == {"norm", "halo"}


@pytest.mark.parametrize("name", NO_ALTERNATIVE)
def test_an_op_without_an_alternative_says_so_in_one_line(name):
    with pytest.raises(InputError, match=f"plain op '{name}' has no alternative: ") as error:
        parse_plain(f"norm,{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"), [("norms", "plain op 'norms' does not exist: choose from all, gathered"), (",", "name nothing")]
)
def test_other_names_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_plain(text)


def test_links_are_at_least_one():
    with pytest.raises(InputError, match="links 0 must be from 1 to 16"):
        Ways(links=0)


def test_advice():
    assert advice("ttnn.experimental.neighbor_pad_async") == "avoid it with --plain halo"
    assert advice("ttnn.experimental.dit_fused_distributed_rmsnorm") == "avoid it with --plain norm,head-norm"
    assert "mesh 1x1" in advice("ttnn.all_gather")
    assert advice("ttnn.add") == "no other op computes this"


def test_every_op_is_ttnns():
    import ttnn

    for alternative in ALTERNATIVES.values():
        for name in alternative.ops:
            op = ttnn
            for part in name.split(".")[1:]:
                op = getattr(op, part)
            assert op.python_fully_qualified_name == name
