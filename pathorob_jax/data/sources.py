"""Where the benchmark's files come from, at which revision, how large they are, and their digests.

Images are in three repositories of the Hugging Face hub, the tables of patches in PathoROB's own on
GitHub. Of an image file the beginning of its sha256 is known here; the hub gives the rest. Of
``tcga_2x2.csv`` nothing is: its size and digest are recorded at first use (``fetch``).
"""

from dataclasses import dataclass

from pathorob_jax.data.protocols import PROTOCOLS

METADATA = "metadata"
GITHUB_RAW = "https://raw.githubusercontent.com"
GITHUB_REPO = "bifold-pathomics/PathoROB"
GITHUB_COMMIT = "6583cf0b0d902c8cc032308262fa3a3befdc0687"
GITHUB_LICENCE = "BSD-3-Clause"


@dataclass(frozen=True)
class Source:
    """A file of the benchmark.

    Attributes:
        path: its place below the data folder.
        repo: ``owner/name`` on the hub (a dataset) or on GitHub.
        revision: commit.
        name: path in the repository.
        licence: SPDX name.
        n_bytes: size; None: unknown until first use.
        sha256: digest in hex, or its beginning; "": unknown until first use.
        is_on_hub: on the Hugging Face hub, else on GitHub.
    """

    path: str
    repo: str
    revision: str
    name: str
    licence: str
    n_bytes: int | None
    sha256: str
    is_on_hub: bool


_REVISIONS = {
    "camelyon": "b2e762542abbf85dde3f23ec70a2bf1848dcf5c8",
    "tcga": "6e1dbd4306ebee9759b32503914523e84bddabd0",
    "tolkach_esca": "c42219a2c168c5995e44487f5747bdacaf4bc2da",
}
_IMAGES = {
    "camelyon": (("train-00000-of-00001.parquet", 466_600_116, "ba6a65b97c0c"),),
    "tcga": (
        ("train-00000-of-00003.parquet", 370_100_844, "e8cd2e8a70b6"),
        ("train-00001-of-00003.parquet", 372_049_191, "9a6440b36b9e"),
        ("train-00002-of-00003.parquet", 378_240_960, "d6ea1afe34bf"),
    ),
    "tolkach_esca": (("train-00000-of-00001.parquet", 315_677_989, "8d05ee072ff4"),),
}
_TABLES: dict[str, tuple[int | None, str]] = {
    "camelyon.csv": (
        700_184,
        "9cad199ae0329b685cdcd5187812b406d533a737c3b58d4eca79c46d95b749ef",
    ),
    "camelyon_reduced.csv": (
        155_666,
        "9bc4239ec0e49ee1c0cf026e279a0aaf540535b24f9f4c547d28b79c03a38c26",
    ),
    "tcga_2x2.csv": (None, ""),
    "tcga_4x4.csv": (
        634_857,
        "1a50d09177001907c5793a7e89ccf1b3640bd55704cb9aae0d3bb33a4bcfca5c",
    ),
    "tolkach_esca.csv": (
        753_625,
        "632472b10ac04e44f0595c11fd532f20e52bee8478dc4d3f4fcb6337a8714665",
    ),
    "tolkach_esca_reduced.csv": (
        573_989,
        "da183b32e05ed6d7c791c8a949952597f230d1e9f4a334bbac82e5622388d142",
    ),
    "tolkach_splits.json": (
        161_937,
        "7d48e63f481d6d3ab9be4991d4b8075ae33bdec44f87aa6ce36051388ca06b85",
    ),
}

# Of the two kinds of tables, by ending.
_FOLDERS = {"csv": "data/metadata", "json": "pathorob/resources"}


def _images(dataset: str) -> list[Source]:
    protocol = PROTOCOLS[dataset]
    return [
        Source(
            path=f"{dataset}/{name}",
            repo=protocol.images,
            revision=_REVISIONS[dataset],
            name=f"data/{name}",
            licence=protocol.licence,
            n_bytes=n_bytes,
            sha256=sha256,
            is_on_hub=True,
        )
        for name, n_bytes, sha256 in _IMAGES[dataset]
    ]


def _tables(dataset: str) -> list[Source]:
    """The metadata files that the metrics' protocols name."""
    protocol = PROTOCOLS[dataset]
    views = [protocol.robustness_index.view, protocol.apd.in_domain, protocol.apd.out_of_domain]
    names = [view.metadata for view in (*views, protocol.clustering_score.view)]
    names += [protocol.apd.case_splits] if protocol.apd.case_splits else []
    return [
        Source(
            path=f"{METADATA}/{name}",
            repo=GITHUB_REPO,
            revision=GITHUB_COMMIT,
            name=f"{_FOLDERS[name.rpartition('.')[2]]}/{name}",
            licence=GITHUB_LICENCE,
            n_bytes=_TABLES[name][0],
            sha256=_TABLES[name][1],
            is_on_hub=False,
        )
        for name in dict.fromkeys(names)
    ]


SOURCES = {name: (*_images(name), *_tables(name)) for name in PROTOCOLS}
