"""Tables in the terminal and in Markdown."""

from wsm_jax.reporting import tables


def test_brackets_in_a_cell_are_text(capsys):
    tables.print_table(
        ["fact", "value"], [["source", "text:/data/[a-c]*.md"], ["command", "--leaves=mlp[/]bias=last"]], "[x]"
    )
    printed = capsys.readouterr().out
    for text in ("text:/data/[a-c]*.md", "--leaves=mlp[/]bias=last", "[x]"):
        assert text in printed


def test_values_on_one_line():
    assert tables.listed({"a": [1.0, True, 12345], "b": "x"}) == "a 1, yes, 12,345, b x"
    assert tables.listed(list(range(20))) == "0, 1, 2, 3, 4, …, 15, 16, 17, 18, 19"
    assert tables.text(0.123456789) == "0.12346" and tables.text(None) == "None"


def test_a_markdown_table():
    assert tables.markdown_table([["a", "b"], ["x", "1"]]) == ["| a | b |", "| :-- | --: |", "| x | 1 |"]
