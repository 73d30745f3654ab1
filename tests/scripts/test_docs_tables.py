"""Tables in documents: found by their marks, replaced by what a command prints."""

import pytest

from scripts import docs_tables
from scripts.docs_tables import documents, replaced, tables, tables_in, update

OLD = """# Text

<!-- table: mochi-tt measure --validation (8 seconds) -->
| old |
|---|
<!-- end -->

Between.

<!-- table: mochi-tt layouts --system galaxy -->
<!-- end -->
"""
PRINTED = {
    ("measure", "--validation"): "PROJECTION\n| a |\n|---|\n| 1 |\n\nafter\n",
    ("layouts", "--system", "galaxy"): "| b |\n|---|\n\n| c |\n|---|\nfastest: one\n",
}


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(OLD)
    return file


def fake_runner(arguments):
    return PRINTED[tuple(arguments)]


def test_a_table_is_replaced_and_the_rest_stays(document):
    assert update([document], run=fake_runner) == [document]
    text = document.read_text()
    assert "(8 seconds) -->\n| a |\n|---|\n| 1 |\n<!-- end -->\n\nBetween." in text
    assert "galaxy -->\n| b |\n|---|\n\n| c |\n|---|\n<!-- end -->\n" in text
    assert "old" not in text
    assert text.startswith("# Text\n")
    assert update([document], run=fake_runner) == [], "what is up to date does not change"


def test_check_changes_nothing(document):
    assert update([document], check=True, run=fake_runner) == [document]
    assert document.read_text() == OLD


@pytest.mark.parametrize("only", ["validation", "mochi-tt measure*"])
def test_only_some(document, only):
    update([document], only, run=fake_runner)
    text = document.read_text()
    assert "| 1 |" in text
    assert "| b |" not in text


def test_a_mark_must_be_closed(document):
    document.write_text(OLD + "<!-- table: mochi-tt doctor -->\n")
    with pytest.raises(ValueError, match="not closed"):
        tables(document)


def test_another_programs_table_is_refused(document):
    document.write_text(OLD.replace("mochi-tt measure", "rm"))
    with pytest.raises(ValueError, match="must be of a mochi-tt command"):
        update([document], run=fake_runner)


def test_a_command_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="no Markdown table"):
        tables_in("nothing\n")


def test_replacing_keeps_backslashes():
    assert r"\1" in replaced(OLD, {"mochi-tt measure --validation": "| \\1 |\n"})


def test_the_documents_have_tables_with_their_cost():
    found = [table for file in documents() for table in tables(file)]
    assert found
    for table in found:
        assert table.cost, table.command
        assert tables_in(table.body) == table.body, table.command


def test_list_says_what_each_costs(capsys):
    assert docs_tables.main(["--list", "--only", "validation"]) == 0
    assert "mochi-tt measure --validation (" in capsys.readouterr().out
