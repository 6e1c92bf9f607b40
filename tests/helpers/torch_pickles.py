"""``.pt`` files as ``torch.save`` writes them, made without PyTorch."""

import math
import zipfile

FLOATS = b"torch\nFloatStorage"


def tensor(shape, *, strides=None, offset=0, n_values=None, kind=FLOATS, key="0"):
    """What a pickle says of a tensor whose values are the file ``data/<key>``."""
    in_order = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    n_values = math.prod(shape) if n_values is None else n_values
    storage = b"(Vstorage\nc%b\nV%b\nVcpu\nI%d\ntQ" % (kind, key.encode(), n_values)
    where = b"I%d\n" % offset + _tuple(shape) + _tuple(in_order if strides is None else strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + where + b"I00\ntR"


def mapping(**values):
    """What a pickle says of a dict."""
    return b"}" + b"".join(b"V%b\n%bs" % (name.encode(), v) for name, v in values.items())


def texts(*values):
    """What a pickle says of a list of text."""
    return b"]" + b"".join(b"V%b\na" % value.encode() for value in values)


def save(path, pickled, *, compress=zipfile.ZIP_STORED, order=b"little", **storages):
    """Write a pickle, and the arrays ``storages`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled + b".")
        archive.writestr("archive/byteorder", order)
        for name, values in storages.items():
            archive.writestr(f"archive/data/{name[1:]}", values.tobytes(), compress)
    return path


def save_rows(path, x):
    """Write one tensor of float32."""
    return save(path, tensor(x.shape), _0=x)


def _tuple(values):
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"
