from mnet_cli.system.text import printable


def test_control_codes_and_undecodable_bytes_are_escaped_and_letters_kept():
    assert printable("a\nb\x1b[31m\udcff é") == "a\\nb\\x1b[31m\\udcff é"


def test_long_text_is_cut():
    assert printable("abcdef", 4) == "abc…"
    assert printable("abcd", 4) == "abcd"
