"""The reading room as a widget: the pictures are drawn in the browser, the kernel answers with exams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mammo_utils.reading_room.exams import Room, choose, first_exam
from mammo_utils.vocabulary import VIEWS

HERE = Path(__file__).parent


class ReadingRoom(anywidget.AnyWidget):
    """An exam's views, hung as radiologists hang them, and what the runs predict from any of them.

    The browser sets `request`: `number`, `filters` and `exam`. The kernel then sets `listed` and last `answer`, with
    the same number. Until it does, the browser dims the numbers.

    Args:
        room: What `exams.open_room` returned.
    """

    _esm = "\n".join((HERE / name).read_text("utf-8") for name in ("views.js", "room.js"))
    _css = HERE / "room.css"
    about = traitlets.Dict().tag(sync=True)
    listed = traitlets.List().tag(sync=True)
    request = traitlets.Dict().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)

    def __init__(self, room: Room) -> None:
        self._room, self._table = room, room.table()
        about = room.about() | {"views": list(VIEWS), "options": room.options(), "exams": len(self._table)}
        request = {"number": 0, "filters": {}, "exam": first_exam(self._table)}
        super().__init__(about=about, request=request, listed=self._list({}), answer=self._answer(request))

    @traitlets.observe("request")
    def _on_request(self, change: dict[str, Any]) -> None:
        if change["old"]:  # not by __init__
            self.listed = self._list(change["new"]["filters"])
            self.answer = self._answer(change["new"])

    def _list(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        rows = choose(self._table, filters)
        return [
            {"exam": row.exam, "classes": row.classes, "wrong": row.wrong, "mapped": row.mapped}
            for row in rows.itertuples()
        ]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._room.payload(request["exam"]) | {"number": request["number"], "error": ""}
        except ValueError as error:  # the exam before it stays
            return self.answer | {"number": request["number"], "error": str(error)}
