"""What is seen on the screen: where a colour is in the picture, without asking the page."""

import io

import numpy as np
from PIL import Image
from playwright.sync_api import Page


def pixels(page: Page, inside: str = "body") -> np.ndarray:
    """Take a picture of what is in view, as red, green and blue; -1 outside an element."""
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    frame = page.locator(inside).bounding_box()
    assert frame is not None
    left, top = round(frame["x"]), round(frame["y"])
    place = slice(top, top + round(frame["height"])), slice(left, left + round(frame["width"]))
    result = np.full_like(picture, -1)
    result[place] = picture[place]
    return result


def box(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Find the first and the last row and column of the pixels of a colour."""
    rows, columns = np.nonzero((abs(picture - np.array(colour)) <= 1).all(axis=-1))
    assert len(rows), f"nothing on the screen has the colour {colour}"
    return rows.min(), rows.max(), columns.min(), columns.max()


def off_centre(
    picture: np.ndarray, colour: tuple[int, int, int], across: float, down: float
) -> tuple[float, float]:
    """Return a place inside the pixels of a colour, as shares of their width and height."""
    top, bottom, left, right = box(picture, colour)
    return left + across * (right - left), top + down * (bottom - top)
