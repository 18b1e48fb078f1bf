"""Images, their embeddings, and the decoder that answers clicks: in the page, or here for it."""

import asyncio
import base64
import binascii
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from numpy.typing import NDArray
from pydantic import Field

from stages.records import Record
from web.dependencies import ImageId, Somebody, TheDesk
from web.open_round import OpenRound

routes = APIRouter(prefix="/api")

MAX_POINTS = 256
Coordinate = Annotated[float, Field(ge=-(2**15), le=2**15)]
"""Input frame; far from where numbers end."""


class DecodeRequest(Record):
    image_id: Annotated[int, Field(ge=0, lt=2**63)]
    point_coords: Annotated[tuple[tuple[Coordinate, Coordinate], ...], Field(max_length=MAX_POINTS)]
    point_labels: tuple[Annotated[int, Field(ge=-1, le=3)], ...]
    mask_input: str | None = None
    """Base64 of fp16 logits (s, s)."""


class DecodeAnswer(Record):
    low_res_masks: str
    """Base64 of fp16 logits (4, s, s)."""
    predicted_iou: tuple[float, ...]


class ZoomInRequest(DecodeRequest):
    """Points in the crop's input frame; mask_input in that of the whole image, as ever."""

    crop_xyxy: tuple[int, int, int, int]
    """Image pixels, right and bottom exclusive."""


class ZoomInAnswer(DecodeAnswer):
    carried: str
    """The logits as they are seen in the whole image: base64 of fp16, (4, s, s)."""


def round_of(image_id: ImageId, desk: TheDesk) -> OpenRound:
    found = desk.rounds.with_image(image_id)
    if found is None:
        raise HTTPException(404, f"image {image_id} is not one of this round's")
    return found


RoundOfImage = Annotated[OpenRound, Depends(round_of)]


@routes.get("/images/{image_id}")
def image(somebody: Somebody, desk: TheDesk, image_id: ImageId, _: RoundOfImage) -> Response:
    return Response(desk.images.jpeg(image_id), media_type="image/jpeg")


@routes.get("/embeddings/{image_id}")
def embedding(somebody: Somebody, desk: TheDesk, image_id: ImageId, mine: RoundOfImage) -> Response:
    values = desk.images.embedding(mine, image_id)
    return Response(values.astype("<f2").tobytes(), media_type="application/octet-stream")


@routes.get("/superpixels/{image_id}")
async def superpixels(
    somebody: Somebody,
    desk: TheDesk,
    image_id: ImageId,
    _: RoundOfImage,
    crop_xyxy: Annotated[tuple[int, int, int, int] | None, Query()] = None,
) -> Response:
    """Of the image, or of a crop of it: what the page makes its masks of."""
    if not desk.config.snap:
        raise HTTPException(404, "masks of this run are not made of superpixels: snap is off")
    try:
        being_made = await asyncio.to_thread(desk.images.superpixels, image_id, crop_xyxy)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    content = await asyncio.shield(asyncio.wrap_future(being_made))  # others may wait for it, too
    headers = {"Content-Encoding": "gzip"}
    return Response(content, headers=headers, media_type="application/octet-stream")


@routes.get("/decoder")
def decoder(
    somebody: Somebody,
    desk: TheDesk,
    if_none_match: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    # Kept by the browser, and asked after by the checkpoint's name: 16 MB once a round.
    current = desk.rounds.current()
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{current.checkpoint}"'}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content = current.decoder.file.content
    return Response(content, headers=headers, media_type="application/octet-stream")


@routes.post("/decode")
def decode(body: DecodeRequest, somebody: Somebody, desk: TheDesk) -> DecodeAnswer:
    mine = round_of(body.image_id, desk)
    masks, predicted_iou = desk.images.decode(mine, body.image_id, *_prompt(body, mine))
    return DecodeAnswer(low_res_masks=_encoded(masks), predicted_iou=tuple(predicted_iou.tolist()))


@routes.post("/zoom-in")
def zoom_in(body: ZoomInRequest, somebody: Somebody, desk: TheDesk) -> ZoomInAnswer:
    if not desk.config.zoom_in:
        raise HTTPException(
            404, "annotators of this run do not zoom in: its config has zoom_in off"
        )
    mine = round_of(body.image_id, desk)
    prompt = _prompt(body, mine)
    try:
        near = desk.images.zoom_in(mine, body.image_id, body.crop_xyxy, *prompt)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return ZoomInAnswer(
        low_res_masks=_encoded(near.low_res_masks),
        predicted_iou=tuple(near.predicted_iou.tolist()),
        carried=_encoded(near.carried),
    )


def _prompt(
    body: DecodeRequest, mine: OpenRound
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]:
    """Points, labels and mask input, as the decoder takes them."""
    if not body.point_coords or len(body.point_labels) != len(body.point_coords):
        raise HTTPException(422, "point_labels: expected one for each of point_coords")
    side = mine.decoder.file.low_res_size
    return (
        np.asarray(body.point_coords, np.float32),
        np.asarray(body.point_labels, np.int64),
        None if body.mask_input is None else _logits(body.mask_input, side),
    )


def _encoded(logits: NDArray[np.float32]) -> str:
    return base64.b64encode(logits.astype("<f2").tobytes()).decode()


def _logits(encoded: str, side: int) -> NDArray[Any]:
    try:
        values = np.frombuffer(base64.b64decode(encoded, validate=True), "<f2")
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "mask_input: expected base64 of fp16 values") from error
    if values.size != side * side or not np.isfinite(values).all():
        raise HTTPException(422, f"mask_input: expected {side} x {side} finite fp16 values")
    return values.reshape(side, side).astype(np.float32)
