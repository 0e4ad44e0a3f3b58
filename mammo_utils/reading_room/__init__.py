"""The reading room of notebook 09: an exam's four views, and what the runs predict from any of them."""

from mammo_utils.reading_room.exams import Room, open_room
from mammo_utils.reading_room.figure import draw_room
from mammo_utils.reading_room.widget import ReadingRoom

__all__ = ["ReadingRoom", "Room", "draw_room", "open_room"]
