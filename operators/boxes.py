"""Boxes of object detection: overlaps, suppression of what overlaps, matching, encoding.

A box is (x1, y1, x2, y2) in the format "corner", (x, y, width, height) around its centre in the format "center".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ndarray.dtype import INT64
from .composite import derived
from .faces import Rule
from .infer import floating, uniform
from .nn import known
from .schema import Attributes, Inferred, Meta, Metas, Sample, constant, operator, zero
from .texts import raw

CONTRIB = Rule(space="contrib")
FORMATS = ("corner", "center")
#: (x, y, w, h) @ this is (x1, y1, x2, y2)
_TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])
_CHANGES = {("center", "corner"): _TO_CORNERS, ("corner", "center"): np.linalg.inv(_TO_CORNERS)}


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


def corners(boxes: Any, kind: str) -> Any:
    return boxes @ _TO_CORNERS.astype(boxes.dtype) if kind == "center" else boxes


def overlaps(xp: Any, a: Any, b: Any) -> Any:
    """Intersection over union of boxes by their corners, broadcast; 0 where the union is none."""
    sides = xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2])
    common = sides.clip(0).prod(-1)
    union = sum((box[..., 2:] - box[..., :2]).clip(0).prod(-1) for box in (a, b)) - common
    return xp.where(union > 0, common / xp.where(union > 0, union, 1), 0)


# ---- box_iou ---------------------------------------------------------------------------------------------------------


def _iou(metas: Metas, attributes: Attributes) -> Inferred:
    (a, _), (b, _) = lhs, rhs = [_known(meta) for meta in metas]
    dtype = uniform(lhs, rhs)
    floating(lhs)
    known("format", attributes["format"], FORMATS)
    if a[-1:] != (4,) or b[-1:] != (4,):
        raise ValueError("boxes (..., 4) expected")
    return (((*a[:-1], *b[:-1]), dtype),), attributes


_SOME = np.array([[0, 0, 2, 2], [1, 1, 3, 4], [0.5, 0, 1, 3], [2, 2, 2, 2], [5, 5, 7, 8]])


def _slow_iou(lhs: Any, rhs: Any, format: str = "corner") -> Any:
    out = np.zeros((len(lhs), len(rhs)))
    for i, j in np.ndindex(*out.shape):
        a, b = (corners(box, format) for box in (lhs[i], rhs[j]))
        common = math.prod(max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
        union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
        out[i, j] = common / union if union > 0 else 0
    return out


@operator(
    "contrib_box_iou", infer=_iou, nd=CONTRIB, reference=_slow_iou, cost=20,
    samples=[Sample(_SOME, _SOME[1:4]), Sample(_SOME, _SOME[:2], format="center")],
)  # fmt: skip
def box_iou(xp: Any, lhs: Any, rhs: Any, *, format: str = "corner", out: Any) -> None:
    """Intersection over union of each box with each: (a..., 4), (b..., 4) -> (a..., b...).  Its gradient is 0.

    format: "corner" or "center".   MXNet: contrib.box_iou.
    """
    a, b = (corners(boxes, format) for boxes in (lhs, rhs))
    out[...] = overlaps(xp, a.reshape(*a.shape[:-1], *(1,) * (b.ndim - 1), 4), b)


box_iou.grad(lhs=zero, rhs=zero)


# ---- box_nms ---------------------------------------------------------------------------------------------------------


def _nms(metas: Metas, attributes: Attributes) -> Inferred:
    data = _known(metas[0])
    shape = data[0]
    floating(data)
    for name in ("in_format", "out_format"):
        known(name, attributes[name], FORMATS)
    names = ("topk", "coord_start", "score_index", "id_index", "background_id")
    attributes = {**attributes, **{name: int(attributes[name]) for name in names}}
    if len(shape) < 2 or not 0 <= attributes["coord_start"] <= shape[-1] - 4:
        raise ValueError("data (..., boxes, k), with four coordinates from coord_start, expected")
    if not 0 <= attributes["score_index"] < shape[-1] or attributes["id_index"] >= shape[-1]:
        raise ValueError(f"score_index and id_index below {shape[-1]} expected")
    return (data, (shape[:-1], INT64)), attributes


def _slow_nms(
    data: Any, overlap_thresh: float = 0.5, valid_thresh: float = 0.0, topk: int = -1, coord_start: int = 2,
    score_index: int = 1, id_index: int = -1, background_id: int = -1, force_suppress: bool = False,
    in_format: str = "corner", out_format: str = "corner",
) -> Any:  # fmt: skip
    """Suppression box by box."""
    at = slice(coord_start, coord_start + 4)
    out = np.full(data.shape, -1.0)
    for made, boxes in zip(out.reshape(-1, *data.shape[-2:]), data.reshape(-1, *data.shape[-2:]), strict=True):
        rows = [
            b for b in boxes if b[score_index] > valid_thresh and (id_index < 0 or int(b[id_index]) != background_id)
        ]
        rows = sorted(rows, key=lambda b: -b[score_index])[: topk if topk > 0 else None]
        kept: list[Any] = []
        for row in rows:
            same = [k for k in kept if force_suppress or id_index < 0 or int(k[id_index]) == int(row[id_index])]
            if all(_slow_iou(k[None, at], row[None, at], in_format)[0, 0] <= overlap_thresh for k in same):
                kept.append(row)
        for k, row in enumerate(kept):
            made[k] = row
            change = _CHANGES.get((in_format, out_format))
            if change is not None:
                made[k, at] = row[at] @ change
    return out


_PLACES = np.random.default_rng(5).uniform(0, 3, (2, 6, 4)) + np.array([0, 0, 2, 2])
_CROWD = np.concatenate(
    [np.arange(12).reshape(2, 6, 1) % 3 + 0.5, (np.arange(12) * 7 % 12 / 12.0 + 0.05).reshape(2, 6, 1), _PLACES], axis=2
)


@operator(
    "contrib_box_nms", infer=_nms, nd=CONTRIB, saves={"rows": constant}, reference=_slow_nms, cost=200,
    aliases=("box_non_maximum_suppression",),
    samples=[
        Sample(_CROWD, overlap_thresh=0.3), Sample(_CROWD, overlap_thresh=0.2, id_index=0, valid_thresh=0.2),
        Sample(_CROWD[0], overlap_thresh=0.1, id_index=0, background_id=1, force_suppress=True, topk=3),
        Sample(_CROWD, in_format="center", out_format="corner"), Sample(_CROWD, out_format="center"),
    ],
)  # fmt: skip
def box_nms(
    xp: Any, data: Any, *, overlap_thresh: float = 0.5, valid_thresh: float = 0.0, topk: int = -1,
    coord_start: int = 2, score_index: int = 1, id_index: int = -1, background_id: int = -1,
    force_suppress: bool = False, in_format: str = "corner", out_format: str = "corner", out: Any, rows: Any,
) -> None:  # fmt: skip
    """The boxes by falling score without those that overlap a better one by more than overlap_thresh; then rows of -1.

    data: (..., boxes, k), each row with a score, four coordinates and perhaps a class.   valid_thresh: scores must be
    above.   topk: only so many are looked at.   id_index: boxes of different classes suppress each other only with
    force_suppress; those of background_id don't count.   Result: like data.   The gradient goes to the boxes that
    stay.   MXNet: contrib.box_nms.
    """
    *lead, count, width = data.shape
    boxes = data.reshape(math.prod(lead), count, width)
    scores = boxes[:, :, score_index]
    alive = scores > valid_thresh
    classes = None
    if id_index >= 0:
        classes = xp.trunc(boxes[:, :, id_index])
        alive = alive & (classes != background_id)
    order = xp.argsort(xp.where(alive, -scores, np.inf), axis=1, kind="stable")
    alive = xp.take_along_axis(alive, order, 1)
    if topk > 0:
        alive[:, topk:] = False
    boxes = xp.take_along_axis(boxes, order[:, :, None], 1)
    places = corners(boxes[:, :, coord_start : coord_start + 4], in_format)
    classes = None if classes is None or force_suppress else xp.take_along_axis(classes, order, 1)
    _suppress(xp, places, alive, classes, overlap_thresh)
    front = xp.argsort(~alive, axis=1, kind="stable")
    alive = xp.take_along_axis(alive, front, 1)
    boxes = xp.take_along_axis(boxes, front[:, :, None], 1)
    change = _change(data.dtype, width, coord_start, in_format, out_format)
    boxes = boxes if change is None else boxes @ change
    out[...] = xp.where(alive[:, :, None], boxes, -1).reshape(out.shape)
    chosen = xp.take_along_axis(order, front, 1) + xp.arange(len(boxes))[:, None] * count
    rows[...] = xp.where(alive, chosen, -1).reshape(rows.shape)


def _suppress(xp: Any, places: Any, alive: Any, classes: Any, most: float) -> None:
    """Clear what overlaps a box before it that is alive.  places: corners, (n, boxes, 4), by falling score."""
    x1, y1, x2, y2 = (xp.ascontiguousarray(places[..., k]) for k in range(4))
    areas = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    for i in range(int(alive.sum(1).max()) if alive.size else 0):
        one, rest = slice(i, i + 1), slice(i + 1, None)
        if not alive[:, i].any():
            continue
        common = xp.minimum(x2[:, one], x2[:, rest])
        common -= xp.maximum(x1[:, one], x1[:, rest])
        height = xp.minimum(y2[:, one], y2[:, rest])
        height -= xp.maximum(y1[:, one], y1[:, rest])
        xp.maximum(common, 0, out=common)
        xp.maximum(height, 0, out=height)
        common *= height
        union = areas[:, one] + areas[:, rest]
        union -= common
        near = xp.divide(common, union, out=xp.zeros_like(union), where=union > 0) > most
        if classes is not None:
            near &= classes[:, one] == classes[:, rest]
        near &= alive[:, one]
        alive[:, rest] &= ~near


def _change(dtype: Any, width: int, start: int, before: str, after: str) -> Any:
    """What takes rows of data to the other format, None if it is the same."""
    if before == after:
        return None
    whole = np.eye(width)
    whole[start : start + 4, start : start + 4] = _CHANGES[before, after]
    return whole.astype(dtype)


def _nms_gradient(F: Any, g: Any, rows: Any, data_shape: Any, coord_start: int, in_format: str, out_format: str) -> Any:
    count, width = math.prod(data_shape[:-1]), data_shape[-1]
    flat, where = F.reshape(g, shape=(count, width)), F.reshape(rows, shape=(count,))
    stays = F.broadcast_to(F.reshape(F.greater_equal(where, 0), shape=(count, 1)), shape=(count, width))
    flat = F.where(stays, flat, 0)
    change = _change(g.dtype, width, coord_start, in_format, out_format)
    flat = flat if change is None else F.matmul(flat, np.ascontiguousarray(change.T))
    return F.reshape(F.add_rows(flat, where, shape=(count, width), axis=0), shape=data_shape)


box_nms.grad(data=_nms_gradient)


# ---- bipartite_matching ----------------------------------------------------------------------------------------------


def _matching(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    floating(metas[0])
    if len(shape) < 2:
        raise ValueError("data (..., rows, columns) expected")
    made = {"threshold": float(attributes["threshold"]), "topk": int(attributes["topk"])}
    return ((shape[:-1], dtype), ((*shape[:-2], shape[-1]), dtype)), {**attributes, **made}


def _slow_matching(data: Any, threshold: float, is_ascend: bool = False, topk: int = -1) -> Any:
    rows, columns = np.full(data.shape[:-1], -1.0), np.full((*data.shape[:-2], data.shape[-1]), -1.0)
    for lead in np.ndindex(*data.shape[:-2]):
        values, taken = data[lead].ravel(), 0
        for k in np.argsort(values if is_ascend else -values, kind="stable"):
            i, j = divmod(int(k), data.shape[-1])
            good = values[k] < threshold if is_ascend else values[k] > threshold
            if not good or (topk > 0 and taken >= topk):
                break
            if rows[lead][i] < 0 and columns[lead][j] < 0:
                rows[lead][i], columns[lead][j] = j, i
                taken += 1
    return rows, columns


_TABLE = (np.arange(24) * 7 % 24 / 24.0).reshape(2, 3, 4)


@operator(
    "contrib_bipartite_matching", infer=_matching, outputs=("rows", "columns"), nd=CONTRIB, reference=_slow_matching,
    samples=[
        Sample(_TABLE, threshold=0.1), Sample(_TABLE[0], threshold=0.6, is_ascend=True), Sample(_TABLE, threshold=0.0,
                                                                                                topk=2),
    ],
)  # fmt: skip
def bipartite_matching(
    xp: Any, data: Any, *, threshold: float, is_ascend: bool = False, topk: int = -1, rows: Any, columns: Any
) -> None:
    """Greedy pairs of rows and columns: again and again the best score of those that are free.

    data: (..., n, m), scores.   threshold: scores must be above (below, with is_ascend, which takes the least first).
    topk: so many pairs at most.   Results: (..., n), the column of each row, and (..., m), the row of each column; -1
    for none.   MXNet: contrib.bipartite_matching.
    """
    *_, n, m = data.shape
    scores = data.reshape(math.prod(data.shape[:-2]), n, m) * (-1 if is_ascend else 1)
    bound = -threshold if is_ascend else threshold
    scores = xp.where(scores > bound, scores, -np.inf)
    mine, theirs = (xp.full((len(scores), k), -1, data.dtype) for k in (n, m))
    each = xp.arange(len(scores))
    for _ in range(min(n, m, topk if topk > 0 else n) if scores.size else 0):
        best = scores.reshape(-1, n * m).argmax(1)
        i, j = best // m, best % m
        good = xp.isfinite(scores[each, i, j])
        if not good.any():
            break
        k, i, j = each[good], i[good], j[good]
        mine[k, i], theirs[k, j] = j, i
        scores[k, i], scores[k, :, j] = -np.inf, -np.inf
    rows[...], columns[...] = mine.reshape(rows.shape), theirs.reshape(columns.shape)


bipartite_matching.grad(data=zero)


# ---- encoding --------------------------------------------------------------------------------------------------------


def decoded(
    F: Any, data: Any, anchors: Any, *, std0: float, std1: float, std2: float, std3: float, clip: float, format: str
) -> Any:
    def part(boxes: Any, k: int) -> Any:
        return F.slice_axis(boxes, axis=2, begin=k, end=k + 1)

    sides = [part(anchors, k) for k in range(4)]
    if format == "corner":
        (x1, y1, x2, y2) = sides
        w, h = x2 - x1, y2 - y1
        sides = [x1 + w * 0.5, y1 + h * 0.5, w, h]
    centres, halves = [], []
    for k, std in ((0, std0), (1, std1)):
        centres.append(part(data, k) * std * sides[k + 2] + sides[k])
    for k, std in ((2, std2), (3, std3)):
        grown = part(data, k) * std
        halves.append(F.exp(F.minimum(grown, clip) if clip > 0 else grown) * sides[k] * 0.5)
    pairs = list(zip(centres, halves, strict=True))
    return F.concat(*(c - half for c, half in pairs), *(c + half for c, half in pairs), dim=2)


def _decode(metas: Metas, attributes: Attributes) -> Inferred:
    data, anchors = map(_known, metas)
    uniform(data, anchors)
    floating(data)
    known("format", attributes["format"], FORMATS)
    if len(data[0]) != 3 or data[0][2] != 4 or anchors[0] != (1, *data[0][1:]):
        raise ValueError("data (n, boxes, 4) and anchors (1, boxes, 4) expected")
    numbers = {n: float(attributes[n]) for n in ("std0", "std1", "std2", "std3", "clip")}
    return (data,), {**attributes, **numbers}


_STDS: dict[str, Any] = {"std0": 0.1, "std1": 0.2, "std2": 0.3, "std3": 0.4, "clip": -1.0, "format": "center"}


@operator(
    "contrib_box_decode", infer=_decode, nd=CONTRIB, cost=60,
    kinks="where a logarithm is just clip the gradient is that from below",
    samples=[Sample((2, 3, 4), (1, 3, 4), **_STDS), Sample((1, 2, 4), (1, 2, 4), **{**_STDS, "clip": 0.1,
                                                                                    "format": "corner"})],
    reference=lambda data, anchors, **how: decoded(raw, data, anchors, **how),
)  # fmt: skip
def box_decode(
    xp: Any, data: Any, anchors: Any, *, std0: float = 1.0, std1: float = 1.0, std2: float = 1.0, std3: float = 1.0,
    clip: float = -1.0, format: str = "center", out: Any,
) -> None:  # fmt: skip
    """Corners of boxes from their differences to anchors: shifts over the anchor's size, logarithms of ratios of sides.

    data: (n, boxes, 4).   anchors: (1, boxes, 4), of this format.   std: what each difference was divided by.   clip:
    the largest logarithm, if above 0.   Result: like data.   MXNet: contrib.box_decode.
    """
    how: Attributes = {"std0": std0, "std1": std1, "std2": std2, "std3": std3, "clip": clip, "format": format}
    out[...] = decoded(raw, data, anchors, **how)


derived(box_decode, decoded, "data", "anchors")


def _encode(metas: Metas, attributes: Attributes) -> Inferred:
    samples, matches, anchors, refs, means, stds = given = [_known(meta) for meta in metas]
    dtype = uniform(*(meta for i, meta in enumerate(given) if i != 1))
    floating(anchors)
    shape = (*samples[0], 4)
    fits = len(shape) == 3 and matches[0] == samples[0] and anchors[0] == shape and means[0] == stds[0] == (4,)
    if not fits or len(refs[0]) != 3 or refs[0][::2] != shape[::2] or not refs[0][1]:
        raise ValueError("samples, matches (n, k), anchors (n, k, 4), refs (n, m, 4), means and stds (4,) expected")
    return ((shape, dtype), (shape, dtype)), attributes


def _encoded(samples: Any, matches: Any, anchors: Any, refs: Any, means: Any, stds: Any) -> tuple[Any, Any]:
    chosen = np.take_along_axis(refs, matches.astype(np.int64).clip(0, refs.shape[1] - 1)[..., None], 1)
    (near, near_side), (far, far_side) = (
        ((b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]) for b in (chosen, anchors)
    )
    targets = np.concatenate(((near - far) / far_side, np.log(near_side / far_side)), -1)
    masks = np.broadcast_to(samples[..., None] > 0.5, targets.shape)
    return np.where(masks, (targets - means) / stds, 0), masks.astype(anchors.dtype)


_ENCODED = [
    np.array([[1, 0, 1], [-1, 1, 1]]),
    np.array([[0, 1, 1], [1, 0, 1]]),
    np.stack([_SOME[:3], _SOME[[1, 2, 4]]]),
    np.stack([_SOME[[4, 0]], _SOME[[1, 2]]]),
    np.full(4, 0.05),
    np.array([0.1, 0.1, 0.2, 0.2]),
]


@operator(
    "contrib_box_encode", infer=_encode, outputs=("targets", "masks"), nd=Rule(space="contrib", mixed=True),
    indices=("matches",), samples=[Sample(*_ENCODED)], reference=_encoded,
)  # fmt: skip
def box_encode(
    xp: Any, samples: Any, matches: Any, anchors: Any, refs: Any, means: Any, stds: Any, *, targets: Any, masks: Any
) -> None:
    """Differences of boxes to anchors, as box_decode takes them, over stds after means have been subtracted.

    samples: (n, k), above 0.5 where an anchor counts.   matches: (n, k), which of refs (n, m, 4) it belongs to.
    anchors: (n, k, 4).   Corners.   means, stds: (4,).   Results: differences and masks, (n, k, 4), 0 where none
    counts.   No gradient.   MXNet: contrib.box_encode.
    """
    targets[...], masks[...] = _encoded(samples, matches, anchors, refs, means, stds)


box_encode.grad(**dict.fromkeys(box_encode.inputs, zero))
