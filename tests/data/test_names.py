"""Names are text: one spelling for one name, and a word where two may be one."""

import itertools
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import names
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.tileset import open_tileset

NFC, NFD = (unicodedata.normalize(form, "Köln") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (NFD, NFC),
        ("한국".encode().decode(), "한국"),
        (unicodedata.normalize("NFD", "한국"), "한국"),
        ("\u212bngström", "Ångström"),  # the sign of the unit
        ("  North\u00a0Hospital \u3000\r\n", "North\u00a0Hospital"),
        ("\ufeffslide_id", "slide_id"),
        ("No\u200brth\u2060 Ho\u00adspital\u200e", "North Hospital"),
        ("e\u200b\u0301", "é"),
        ("slide\0\0\0", "slide"),
        ("slide\0 \0", "slide"),
        ("sl\0ide", "sl\0ide"),  # refused later, with its row
        ("\0slide", "\0slide"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # a joiner inside a word spells it
        ("\u200dKöln\u200c ", "Köln"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("A  B", "A  B"),
        (" \u200b ", ""),
        ("", ""),
    ],
)
def test_a_name_has_one_spelling(written, name):
    assert names.canonical(written) == name
    assert names.canonical(name) == name


@pytest.mark.campaign
def test_every_sign_of_unicode_has_one_spelling():
    signs = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    for sign in signs:
        once = names.canonical(f"a{sign}b {sign}")
        assert names.canonical(once) == once
        assert unicodedata.is_normalized("NFC", once)
        decomposed = unicodedata.normalize("NFD", f"a{sign}b")
        assert names.canonical(decomposed) == names.canonical(f"a{sign}b")


def test_a_column_holds_the_names_that_its_cells_have(rng):
    parts = ["a", "Z", " ", "\0", "\u200b", "ö", "o\u0308", "\u200d", "~", "北"]
    cells = ["".join(rng.choice(parts, rng.integers(5))) for _ in range(400)]
    cells = [None if i % 17 == 0 else cell for i, cell in enumerate(cells)]
    column = pa.chunked_array([cells[:100], cells[100:101], cells[101:]], pa.string())
    expected = [None if cell is None else names.canonical(cell) for cell in cells]
    assert names.canonical_column(column).to_pylist() == expected
    plain = pa.chunked_array([["a", "b c", None]])
    assert names.canonical_column(plain).to_pylist() == ["a", "b c", None]


@pytest.mark.parametrize(
    "pair",
    [
        ("Tumour", "tumour"),
        (NFC, NFD),
        ("São Paulo", "Sao Paulo"),
        ("MÜNCHEN", "München"),
        ("İstanbul", "istanbul"),
        ("Straße", "STRASSE"),
        ("Łódź", "Lodz"),
        ("ＲＵＭＣ", "RUMC"),
        ("ΑΘΉΝΑ", "Αθηνα"),
        ("МОСКВА", "Москва"),
        ("北京 医院", "北京医院"),
        ("أحمد", "احمد"),
        ("site_1", "Site 1"),
        ("non-tumor", "nontumor"),
        ("grade 1.5", "Grade 1,5"),
        ("St. Mary's", "St Marys"),
        ("می\u200cخواهم", "میخواهم"),
        ("CD8⁺", "CD8+"),
    ],
)
def test_names_that_differ_in_case_accents_width_or_punctuation_may_be_one(pair):
    assert names.find_aliases(["x", *pair]) == [pair]


@pytest.mark.parametrize(
    "pair",
    [
        ("北京医院", "上海医院"),
        ("Αθήνα", "Πάτρα"),
        ("A+", "A-"),
        ("A-", "A"),
        ("ER-/PR+", "ER+/PR-"),
        ("HER2- tumor", "HER2+ tumor"),
        ("<5", ">5"),
        ("grade 1.5", "grade 15"),
        ("1-23", "12-3"),
        ("?", "!"),
        ("カン", "ガン"),
        ("दिल", "दाल"),
        ("RUMC", "UMCU"),
        ("", "-"),
    ],
)
def test_names_that_differ_in_letters_digits_or_telling_signs_are_two(pair):
    assert names.find_aliases(list(pair)) == []


def test_acronyms_are_found_and_the_pairs_follow_the_names():
    found = names.find_aliases(
        [
            "MSKCC",
            "Memorial Sloan Kettering",
            "UNC",
            "University of North Carolina",
            "UCSF",
            "University of California San Francisco",
            "Roswell Park",
            "roswell_park",
            "University of Pittsburgh",
            "Asterand",
            "RUMC",
            "UMCU",
            "CWZ",
        ]
    )
    assert found == [
        ("MSKCC", "Memorial Sloan Kettering"),
        ("UNC", "University of North Carolina"),
        ("UCSF", "University of California San Francisco"),
        ("Roswell Park", "roswell_park"),
    ]


def test_other_lists_of_names_never_join_to_one():
    alphabet = ["", "a", "|", "\\", "|a", "\\|", "a\\"]
    lists = [parts for length in (1, 2, 3) for parts in itertools.product(alphabet, repeat=length)]
    assert len({names.join_names(parts, "|") for parts in lists}) == len(lists)
    assert names.join_names(["a", "b", "X", "Y"], "|") == "a|b|X|Y"


def test_what_stands_in_a_folder_is_found_in_any_spelling():
    there = names.Spellings([NFD, "Bonn", "twice", "twice\u200b"], where="features")
    assert there.find(NFC) == there.find(NFD) == NFD
    assert there.find("Ulm") is None
    with pytest.raises(InputError, match="features: holds 'twice' 2 times, in spellings"):
        there.find("twice")


def test_files_are_named_as_they_stand_on_the_disk(tmp_path):
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFC}.png").touch()
    (tmp_path / NFD / f"{NFD}.jpg").touch()
    paths = [f"{NFC}/{NFC}.png", f"{NFC}/{NFC}.jpg", "x.png", f"{NFC}/none.png", "ü.png"]
    found = names.spell_as_files(str(tmp_path), paths)
    assert found == [f"{NFD}/{NFC}.png", f"{NFD}/{NFD}.jpg", "x.png", f"{NFC}/none.png", "ü.png"]
    assert names.spell_as_files(str(tmp_path / "absent"), ["ü.png"]) == ["ü.png"]


def test_the_form_of_a_name_is_no_matter_of_numpy():
    # A fixed-width array cuts NULs by itself and keeps forms: both must give the same name.
    fixed = np.array([NFD, "slide\0"])
    assert [names.canonical(str(name)) for name in fixed] == [NFC, "slide"]


def test_a_tile_is_found_whatever_the_form_of_its_name(tmp_path):
    pixels = np.full((8, 8, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{NFD}.png")
    lines = ["slide_id,patch_id,biological_class,medical_center,path", f"s,0,t,A,{NFC}.png"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    tiles = open_tileset(str(tmp_path))
    assert tiles.reader.read(0)[0] == (tmp_path / f"{NFD}.png").read_bytes()


@pytest.mark.slow
def test_a_schedule_has_the_names_of_the_rows():
    tables = (((1, 1), (1, 1)), ((2, 0), (0, 2)))
    schedule = AssociationSchedule(("t ", "n"), (NFD, "Bonn\u200b"), tables, 1)
    assert schedule.classes == ("t", "n")
    assert schedule.centers == (NFC, "Bonn")
