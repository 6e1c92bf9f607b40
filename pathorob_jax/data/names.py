"""Names are text: one spelling for one name, whatever wrote it.

``canonical`` is applied where names enter: cells and names of columns, names of files and of
members of archives, names in JSON and flags. Two canonical names are one name if they are equal.
``find_aliases`` finds different names that a person may have meant as one.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError

NUL = "\0"
# Signs without a width that change no letter: they are taken out. The joiners U+200C and U+200D
# spell words of Persian and of Indic scripts, and emoji: they stay, except at the ends of a name.
_INVISIBLE = "\u00ad\u200b\u2060\ufeff" + "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
_REMOVED = dict.fromkeys(map(ord, _INVISIBLE + "\u2066\u2067\u2068\u2069"))
_JOINERS = "\u200c\u200d"
# Printable ASCII without blanks at its ends is canonical.
_SURELY_CANONICAL = r"\A[!-~]([ -~]*[!-~])?\z"

_SMALL_WORDS = frozenset({"of", "the", "and", "at", "for", "in", "de", "der", "la"})
# Letters with a stroke, and the like, which Unicode does not decompose.
_BASE_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae"})
# Signs that tell one name from another: "HER2+", "<5", ">5". A minus does at the end of a word.
_TELLING, _DASHES = "+<>=±", "-‐‑–—−"
# Marks that are accents, by their combining class; 0 is a vowel of its own, 8 a Japanese voicing.
_NO_ACCENTS = (0, 8)
_SELECTORS = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f]")


def canonical(name: str) -> str:
    """The one spelling of a name (Unicode Standard Annex 15, form NFC).

    Signs without a width are taken out (except joiners inside the name, which change words),
    canonically equivalent letters get one form, and blanks around the name and NULs behind it,
    which fixed-width formats pad with, are cut.
    """
    text = unicodedata.normalize("NFC", name.translate(_REMOVED))
    cut = None
    while text != cut:
        cut, text = text, text.strip().strip(_JOINERS).rstrip(NUL)
    return text


def canonical_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as canonical names; null stays null."""
    sure = pc.match_substring_regex(column, _SURELY_CANONICAL)
    unsure = pc.unique(column.filter(pc.invert(sure))).drop_null()
    if not len(unsure):
        return column
    mended = pa.array([canonical(name) for name in unsure.to_pylist()], column.type)
    found = pc.index_in(column, value_set=unsure)
    return pc.if_else(pc.is_null(found), column, pc.take(mended, found))


def join_names(names: Iterable[str], sign: str) -> str:
    """Names as one name. Different lists give different ones: the sign is escaped inside names."""
    return sign.join(n.replace("\\", "\\\\").replace(sign, "\\" + sign) for n in names)


class Spellings:
    """Names as they stand in a folder or an archive, found by canonical name."""

    def __init__(self, names: Iterable[str], *, where: str):
        """Args: names as they stand; the folder or archive, for messages."""
        self._where = where
        self._found: dict[str, list[str]] = {}
        for name in names:
            self._found.setdefault(canonical(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The spelling of a name; None if it is not there.

        Raises:
            InputError: it is there twice, in two spellings.
        """
        found = self._found.get(canonical(name), [])
        if len(found) > 1:
            raise InputError(
                f"{self._where}: holds {name!r} {len(found)} times, in spellings that are the same "
                f"text ({', '.join(map(ascii, found))}). Remove all but one."
            )
        return found[0] if found else None


def spell_as_files(root: str, paths: Sequence[str]) -> list[str]:
    """Relative paths in the spelling of the files under ``root``; unknown ones as they are."""
    fs, inner = files.filesystem(root)
    folders: dict[str, Spellings] = {}

    def spell(path: str) -> str:
        spelt: list[str] = []
        for part in path.split("/"):
            folder = files.join(inner, *spelt)
            if folder not in folders:
                selector = pafs.FileSelector(folder, allow_not_found=True)
                entries = [entry.base_name for entry in fs.get_file_info(selector)]
                folders[folder] = Spellings(entries, where=folder)
            found = folders[folder].find(part)
            if found is None:
                return path
            spelt.append(found)
        return "/".join(spelt)

    return [path if path.isascii() else spell(path) for path in paths]


def plain_words(name: str) -> list[str]:
    """Words of a name without case, accents, width and punctuation, in every script."""
    text = unicodedata.normalize("NFKD", name).casefold().translate(_BASE_LETTERS)
    text = _SELECTORS.sub("", unicodedata.normalize("NFKD", text))
    text = "".join(c for c in text if unicodedata.combining(c) in _NO_ACCENTS)
    words, word = [], ""
    for i, sign in enumerate(text):
        following = text[i + 1] if i + 1 < len(text) else " "
        if sign in _DASHES and word and not following.isalnum() and following not in _DASHES:
            word += "-"  # a negative one, as in "HR-" and "ER-/PR+"
        elif sign.isalnum() or sign in _TELLING or unicodedata.category(sign)[0] == "M":
            word += sign
        elif word and unicodedata.category(sign) != "Cf":
            words.append(word)
            word = ""
    return [*words, word] if word else words


def plain(name: str) -> str:
    """``plain_words`` without blanks, except between two digits: grade 1.5 is not grade 15."""
    text = ""
    for word in plain_words(name):
        text += " " + word if text[-1:].isdigit() and word[0].isdigit() else word
    return text


def find_aliases(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that may mean the same.

    They are equal up to case, accents, width and punctuation, or one is the other's acronym:
    ``MSKCC`` and ``Memorial Sloan Kettering``, whose initials (without words like "of" and "the")
    begin the acronym. Nothing is merged; the user decides.
    """
    pairs: set[tuple[int, int]] = set()
    same: dict[str, list[int]] = {}
    initials, single = [], []
    for i, name in enumerate(names):
        earlier = same.setdefault(plain(name), [])
        pairs |= {(j, i) for j in earlier if plain(name)}
        earlier.append(i)
        words = [word for word in re.split(r"[\W_]+", name) if word]
        letters = "".join(w[0] for w in words if w.lower() not in _SMALL_WORDS).upper()
        if len(letters) > 2 and letters.isupper():
            initials.append((i, letters))
        if len(words) == 1:
            single.append((i, words[0]))
    pairs |= {
        (min(i, j), max(i, j))
        for i, letters in initials
        for j, word in single
        if i != j and word.startswith(letters)
    }
    return [(names[i], names[j]) for i, j in sorted(pairs)]
