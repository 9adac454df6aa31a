"""The picture of a connection's life: the states and transitions of ``connection.py``, as SVG.

Where things stand on the picture is written down here; which states and transitions there are is not. One that is
in the table and has no place here, or the other way round, fails the build.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.sax.saxutils import escape

from docs_build.reference import DisagreementError
from keepalive_worker import connection
from keepalive_worker.connection import CLOSED, HANDLING, IDLE, LINGERING, NEW, READING, TRANSITIONS, WRITING

WIDTH, HEIGHT = 900, 470
#: Half the width and half the height of a state's box.
HALF_WIDTH, HALF_HEIGHT = 66, 27

#: Centre of each state's box, and what it stands for there.
PLACES = {
    NEW: (160, 110, "nothing sent yet"),
    READING: (400, 110, "part of a head"),
    HANDLING: (640, 110, "on a greenlet"),
    WRITING: (820, 110, "client is slow"),
    IDLE: (520, 250, "parked"),
    LINGERING: (400, 410, "our FIN is out"),
    CLOSED: (640, 410, "counted, gone"),
}


class Arrow(NamedTuple):
    """How a transition is drawn."""

    #: Path data from box to box.
    path: str
    #: Where its label stands, and what it says.
    x: int
    y: int
    label: str
    #: Which step it is for the request that the page follows; 0 for none.
    step: int = 0


ARROWS = {
    (NEW, READING): Arrow("M226 118 H328", 280, 136, "part of a head"),
    (READING, NEW): Arrow("M334 100 H232", 283, 92, "TLS is up"),
    (NEW, HANDLING): Arrow("M160 83 V46 Q160 34 172 34 H616 Q628 34 628 46 V77", 400, 26, "a whole head", 2),
    (READING, HANDLING): Arrow("M466 110 H568", 517, 102, "the rest"),
    (HANDLING, WRITING): Arrow("M706 102 H748", 728, 94, ""),
    (WRITING, HANDLING): Arrow("M754 118 H712", 728, 134, ""),
    (HANDLING, IDLE): Arrow("M656 137 V238 Q656 250 644 250 H592", 724, 205, "response is out", 3),
    (IDLE, HANDLING): Arrow("M548 223 V190 Q548 178 560 178 H612 Q624 178 624 166 V143", 566, 170, "next request", 4),
    (IDLE, READING): Arrow("M454 250 H412 Q400 250 400 238 V143", 346, 205, "part of a head"),
    (LINGERING, CLOSED): Arrow("M466 410 H568", 517, 402, "client's FIN"),
}

#: The states of a connection that has not ended: each may end, by the one bracket below them.
LIVING = (NEW, READING, HANDLING, WRITING, IDLE)

_IMAGE = ' role="img" aria-labelledby="life-title"'
_TIP = (
    '<marker id="life-tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="10" markerHeight="10"'
    ' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker>'
)


#: The name that ``connection.py`` has for each state.
NAMES = {
    getattr(connection, name): name for name in ("NEW", "READING", "IDLE", "HANDLING", "WRITING", "LINGERING", "CLOSED")
}


def _check() -> None:
    """Raise unless the picture and the table have the same states and transitions."""
    drawn = set(ARROWS)
    for state in LIVING:
        drawn |= {(state, LINGERING), (state, CLOSED)}
    there = {(state, to) for state, others in TRANSITIONS.items() for to in others}
    if drawn != there or set(PLACES) != set(TRANSITIONS):
        named = [f"{NAMES[one]} to {NAMES[other]}" for one, other in sorted(drawn ^ there)]
        raise DisagreementError(f"the diagram and connection.TRANSITIONS differ in {named}")


def svg() -> str:
    """The picture, to stand in a page; its colours are the page's."""
    _check()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="life" viewBox="0 0 {WIDTH} {HEIGHT}"{_IMAGE}>',
        '<title id="life-title">The states of a connection and how it goes from one to another</title>',
        f"<defs>{_TIP}</defs>",
        '<rect class="living" x="80" y="8" width="816" height="290" rx="10"/>',
        _arrow("M24 110 H88"),
        _label(46, 134, "accept", 1),
    ]
    for (one, other), arrow in ARROWS.items():
        parts += [
            _arrow(arrow.path, NAMES[one], NAMES[other], walked=arrow.step > 0),
            _label(arrow.x, arrow.y, arrow.label, arrow.step),
        ]
    living = " ".join(NAMES[state] for state in LIVING)
    parts += [
        _arrow("M400 298 V377", living, NAMES[LINGERING], walked=True),
        _label(478, 344, "any of them ends", 5),
        _arrow("M640 298 V377", living, NAMES[CLOSED]),
    ]
    parts.append(_label(712, 344, "or ends by a reset"))
    for state, (x, y, meaning) in PLACES.items():
        parts.append(
            f'<g class="state" data-state="{NAMES[state]}"><rect x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}"'
            f' width="{2 * HALF_WIDTH}" height="{2 * HALF_HEIGHT}" rx="6"/>'
            f'<text class="name" x="{x}" y="{y - 3}">{NAMES[state]}</text>'
            f'<text x="{x}" y="{y + 15}">{escape(meaning)}</text></g>'
        )
    # One line: Markdown takes an empty one for the end of a block of HTML.
    return "".join([*parts, "</svg>"])


def _arrow(path: str, one: str = "", other: str = "", *, walked: bool = False) -> str:
    ends = f' data-from="{one}" data-to="{other}"' if one else ""
    return f'<path class="arrow{" walked" if walked else ""}"{ends} d="{path}" marker-end="url(#life-tip)"/>'


def _label(x: int, y: int, text: str, step: int = 0) -> str:
    made = f'<text class="label" x="{x}" y="{y}">{escape(text)}</text>' if text else ""
    if step:
        # Left of the text, about as wide as its letters are.
        left = x - 3.7 * len(text) - 15
        made += f'<circle class="step" cx="{left:g}" cy="{y - 4}" r="9"/>'
        made += f'<text class="step" x="{left:g}" y="{y}">{step}</text>'
    return made
