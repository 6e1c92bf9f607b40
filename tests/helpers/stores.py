"""Small manifests and embedding stores, for the tests that evaluate them."""

from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.embeddings import store_files, store_writer
from pathorob_jax.evaluation.run import Evaluation, Request
from pathorob_jax.results import registry

# Of any store; robustification needs one with a parent.
METRICS = tuple(name for name in registry.KINDS if name != "robustification")


def make_manifest(bio, center, slide, *, source="manifest", **columns):
    """Row i: patch i of slide ``s<slide[i]>``, ``class<bio[i]>``, ``Center <center[i]>``."""
    return as_manifest(
        {
            "slide_id": [f"s{i}" for i in slide],
            "patch_id": [str(i) for i in range(len(bio))],
            "biological_class": [f"class{i}" for i in bio],
            "medical_center": [f"Center {i}" for i in center],
            **columns,
        },
        source=source,
    )


def make_store(path, x, manifest, *, chunk_rows=32):
    """A complete store of the rows ``x`` at ``path``."""
    writer = store_writer.create_store(
        str(path),
        manifest=manifest,
        dim=x.shape[1],
        chunk_rows=chunk_rows,
        identity={"encoder": "test"},
    )
    for chunk in writer.missing_chunks:
        writer.write(chunk, x[writer.chunk_slice(chunk)]).result()
    return writer.commit()


def unfinish(path):
    """Make a complete store unfinished, as one whose writer was killed; chunks stay."""
    info = store_files.read_info(str(path))
    store_files.write_info(str(path), info | {"complete": False})


class _InFolder(Evaluation):
    """Keeps finished tasks in a folder of the test's choice."""

    folder: str | None = None

    def task_folder(self, metric):
        return self.folder


def plan(opened, *, work_dir=None, model="m", dataset="d", **request):
    """The evaluation of one store, for tests that call a metric's own function."""
    evaluation = _InFolder(opened, Request(model=model, dataset=dataset, **request), dataset)
    vars(evaluation)["folder"] = work_dir
    return evaluation
