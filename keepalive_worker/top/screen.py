"""The live view: draws what ``view.py`` makes of the reports, and takes keys. The one module that needs textual."""

from __future__ import annotations

import threading
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, Static

from keepalive_worker.top import view
from keepalive_worker.top.endpoint import Endpoint, NoReportError
from keepalive_worker.top.report import printable

#: Connections to ask for while there is a filter, which only sees what is listed.
_FILTERED = 10_000

#: Shortest and longest seconds between two reports that keys lead to.
_SHORTEST, _LONGEST = 0.5, 60.0


class Arrived(Message):
    """A report has come."""

    def __init__(self, report: view.Report) -> None:
        super().__init__()
        self.report = report


class Missing(Message):
    """There was none."""

    def __init__(self, error: NoReportError) -> None:
        super().__init__()
        self.error = error


class Screen(App[None]):
    """keepalive-top's one screen.

    :param endpoint: where reports come from, asked on a thread of its own
    :param first: the report that has already come
    :param interval: seconds between two reports
    :param limit: most rows of the connection table
    """

    TITLE = "keepalive-top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #totals, #closed, #notice { height: auto; padding: 0 1; }
    #closed { margin-bottom: 1; }
    #notice { display: none; background: $error; color: $text; }
    #notice.shown { display: block; }
    #words { dock: bottom; margin-bottom: 1; height: 3; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("i", "sort('idle')", "Idle"),
        Binding("a", "sort('age')", "Age"),
        Binding("n", "sort('requests')", "Requests"),
        Binding("b", "sort('bytes_sent')", "Bytes"),
        Binding("left_square_bracket", "other_column(-1)", "Column", key_display="["),
        Binding("right_square_bracket", "other_column(1)", "Column", key_display="]"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "no_filter", "All", show=False),
        Binding("space", "pause", "Pause"),
        Binding("plus", "slower(2)", "Slower", key_display="+"),
        Binding("minus", "slower(0.5)", "Faster", key_display="-"),
    ]

    def __init__(
        self,
        endpoint: Endpoint,
        first: view.Report,
        *,
        interval: float,
        limit: int,
        sort: str,
        reverse: bool,
        words: str,
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._history = view.History()
        self._first = first
        self._report = first
        self._rates: view.Rates | None = None
        self._interval = interval
        self._limit = limit
        self._sort = sort
        self._reverse = reverse
        self._words = words
        self._paused = False
        self._trouble: str | None = None
        #: Ends the wait for the next report.
        self._now = threading.Event()

    def compose(self) -> ComposeResult:
        """The parts, from top to bottom."""
        yield Static(id="notice")
        yield Static(id="totals")
        yield Static(id="closed")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Input(placeholder="words to find in peer, state, protocol or worker", id="words", value=self._words)
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self.on_input_submitted()
        self.on_arrived(Arrived(self._first))
        # A daemon: a server that does not answer must not keep the terminal when the user quits.
        threading.Thread(target=self._follow, daemon=True).start()

    # ------------------------------------------------------------------- reports

    def _follow(self) -> None:
        """On the thread: fetch one report after the other."""
        while True:
            asked_for = self._now.wait(self._interval)
            self._now.clear()
            if self._paused and not asked_for:
                continue
            message: Message
            try:
                ask = view.BY_NAME[self._sort].ask or view.DEFAULT_SORT
                # The server sorts one way only; the other end of its list has to be fetched with all of it.
                least = self._words or self._reverse or view.BY_NAME[self._sort].ask is None
                message = Arrived(self._endpoint.report(ask, _FILTERED if least else self._limit))
            except NoReportError as error:
                message = Missing(error)
            self.post_message(message)

    def on_arrived(self, message: Arrived) -> None:
        """Show a report."""
        self._trouble = None
        self._rates = self._history.add(message.report)
        self._report = message.report
        self._draw()

    def on_missing(self, message: Missing) -> None:
        """Say what is wrong; what was last seen stays."""
        self._trouble = str(message.error)
        self._history.gap()
        self._rates = None
        self._draw()

    # ------------------------------------------------------------------- drawing

    def on_resize(self) -> None:
        """The sparklines are as long as there is room."""
        self._draw()

    def _draw(self) -> None:
        report = self._report
        lines = [view.headline(report, self._endpoint.url)]
        lines[0] += "  paused" if self._paused else f"  every {self._interval:g} s"
        lines += view.totals(report, self._rates, self._history, self.size.width - 2)
        self.query_one("#totals", Static).update(Text("\n".join(lines), no_wrap=True))
        self.query_one("#closed", Static).update(self._closes())
        notices = [printable(str(note)) for note in report.get("notes", ())]
        if self._trouble is not None:
            notices.insert(0, f"{self._trouble} Trying again every {self._interval:g} s.")
        notice = self.query_one("#notice", Static)
        notice.update(Text("\n".join(notices)))
        notice.set_class(bool(notices), "shown")
        self._draw_table()

    def _closes(self) -> Text:
        text = Text("Closed      ")
        for number, (reason, many, notable) in enumerate(view.closes(self._report)):
            text.append(", " if number else "")
            text.append(f"{reason} {many}", "bold yellow" if notable else "")
        return text if view.closes(self._report) else text.append("none so far")

    def _draw_table(self) -> None:
        table: DataTable[Text] = self.query_one(DataTable)
        found = view.matching(self._report["connections"], self._words)
        rows = view.sorted_by(found, self._sort, self._reverse)[: self._limit]
        chosen, top = table.cursor_row, table.scroll_offset
        table.clear(columns=True)
        for column in view.COLUMNS:
            arrow = ""
            if column.name == self._sort:
                arrow = " ▼" if column.descending != self._reverse else " ▲"
            table.add_column(Text(column.title + arrow), key=column.name)
        for row in rows:
            texts = zip(view.cells(row), view.COLUMNS, strict=True)
            table.add_row(*(Text(text, justify="left" if column.is_text else "right") for text, column in texts))
        table.move_cursor(row=min(chosen, max(0, len(rows) - 1)), scroll=False)
        table.scroll_to(top.x, top.y, animate=False)
        open_ = self._report["totals"].get("connections_open", 0)
        filtered = f", with “{printable(self._words)}”" if self._words else ""
        table.border_title = f"{len(rows)} of {open_} connections{filtered}"
        table.styles.border_top = ("solid", "gray")

    # ------------------------------------------------------------------- keys

    def action_sort(self, name: str) -> None:
        """By a column; by the same again: the other way round."""
        self._reverse = not self._reverse if name == self._sort else False
        self._sort = name
        self._draw_table()
        self._now.set()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """A click on a column's title sorts by it."""
        self.action_sort(str(event.column_key.value))

    def action_other_column(self, step: int) -> None:
        """By the next column to the right or to the left."""
        names = list(view.BY_NAME)
        self._sort, self._reverse = names[(names.index(self._sort) + step) % len(names)], False
        self._draw_table()
        self._now.set()

    def action_reverse(self) -> None:
        """The other way round."""
        self.action_sort(self._sort)

    def action_filter(self) -> None:
        """Open the line to type words into."""
        words = self.query_one("#words", Input)
        # At once: what is typed next must not go to the table.
        words.display = True
        self.set_focus(words)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the user types."""
        self._words = event.value
        self._draw_table()
        self._now.set()

    def on_input_submitted(self) -> None:
        """Back to the table, filtered."""
        self.query_one("#words").display = False
        self.set_focus(self.query_one(DataTable))

    def action_no_filter(self) -> None:
        """All connections again."""
        self.query_one("#words", Input).value = ""
        self.on_input_submitted()

    def action_pause(self) -> None:
        """Stop or go on fetching."""
        self._paused = not self._paused
        self._draw()
        if not self._paused:
            self._now.set()

    def action_slower(self, factor: float) -> None:
        """Longer or shorter intervals."""
        self._interval = min(_LONGEST, max(_SHORTEST, self._interval * factor))
        self._draw()
        self._now.set()
