"""The dashboard, for managers."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response

from web.accounts import Account, Role
from web.dashboard import Dashboard, DashboardFigures
from web.dependencies import ImageId, Somebody, must_be
from web.pictures import MaskPictures

routes = APIRouter(prefix="/api")

RoundIndex = Annotated[int, Path(ge=0, lt=2**31)]


def manager(somebody: Somebody) -> Account:
    must_be(somebody, Role.MANAGER)
    return somebody


Manager = Annotated[Account, Depends(manager)]


@routes.get("/dashboard")
def dashboard(request: Request, somebody: Manager) -> Dashboard:
    figures: DashboardFigures = request.app.state.figures
    return figures.now()


@routes.get("/pictures/{round_index}/{image_id}")
def picture(
    round_index: RoundIndex, image_id: ImageId, request: Request, somebody: Manager
) -> Response:
    pictures: MaskPictures = request.app.state.pictures
    shown = pictures.jpeg(round_index, image_id)
    if shown is None:
        raise HTTPException(404, f"round {round_index} has no masks of image {image_id} yet")
    return Response(shown, media_type="image/jpeg")
