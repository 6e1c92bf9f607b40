"""Fetch PathoROB's images and tables of patches: servers -> <data_dir>/<dataset>/, metadata/.

Files that are there are checked. What is missing is named, with its size and licence, and
downloaded.
"""

from absl import flags, logging

from pathorob_jax.cli import start

_DATASETS = flags.DEFINE_list(
    "datasets", ["camelyon", "tcga", "tolkach_esca"], "Which datasets, comma-separated."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Local folder; <data_dir>/<dataset> is then a tileset, <data_dir>/metadata the --metadata_dir "
    "of experiments.evaluate.",
    required=True,
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would be downloaded, and end.")
_METADATA_URL = flags.DEFINE_string(
    "metadata_url",
    None,
    "Address of a mirror of raw.githubusercontent.com; unset: GitHub itself. HF_ENDPOINT names a "
    "mirror of the Hugging Face hub.",
)

# How to go on after an interruption.
RESUME = "what has come is kept; give the same command of experiments.fetch_data again"


def main() -> None:
    """Turn the flags into one ``fetch`` call."""
    from pathorob_jax.data import fetch, sources

    fetched = fetch.fetch(
        _DATASETS.value,
        _DATA_DIR.value,
        dry_run=_DRY_RUN.value,
        github=_METADATA_URL.value or sources.GITHUB_RAW,
    )
    logging.info(
        "%s: %d files were there, %d were downloaded, %d are missing",
        _DATA_DIR.value,
        len(fetched.present),
        len(fetched.downloaded),
        len(fetched.missing),
    )


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
